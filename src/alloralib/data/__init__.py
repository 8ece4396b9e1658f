"""From a file, a directory, a registered or bundled set or the hub to rows, parts and examples; knows no adapter."""
