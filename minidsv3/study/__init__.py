"""What can be learnt from all of it: the report's claims at small scale, one file a claim."""
