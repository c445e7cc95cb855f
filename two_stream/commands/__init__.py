"""One module per `two-stream` command: its flags and the few lines that join the layers below."""
