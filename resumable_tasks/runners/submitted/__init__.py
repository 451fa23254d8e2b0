"""Work that is handed to a service, and collected later."""
