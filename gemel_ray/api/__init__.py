"""What notebooks and scripts use: the commands as functions, with results that read well and convert."""
