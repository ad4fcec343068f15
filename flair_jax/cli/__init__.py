"""The command `flair-jax`: a module for each subcommand with its flags, examples and run()."""
