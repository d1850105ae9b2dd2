"""What the experiments share: the command line, records and reports, comparisons, baselines."""
