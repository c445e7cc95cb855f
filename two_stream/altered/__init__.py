"""Networks whose layers are not those their options say (narrowed, int8), and how a model file builds them again."""
