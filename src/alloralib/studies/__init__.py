"""The paper's figures and tables, each as a study that one command runs, judges and draws."""
