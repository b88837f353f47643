"""What intone promises, stated as facts that can be false; the same tree as src/intone."""
