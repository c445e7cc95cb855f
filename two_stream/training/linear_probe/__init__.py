"""The linear probe: logistic regression on features of a frozen backbone."""
