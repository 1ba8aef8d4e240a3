"""Many GPUs (report, section 3.2): pipelines as programmes that are drawn and run."""
