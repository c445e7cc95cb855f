"""One module per `two-stream` command: its flags, and the code that calls the library with them."""
