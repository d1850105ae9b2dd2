"""Sweeps and multi-host runs: this package starts experiments by module name, each in a process."""
