"""From a file, a hub name or a bundled set to rows and batches; knows no adapter."""
