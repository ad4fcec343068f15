"""What `flair_jax.doctor` looks at: facts are gathered first, then judged."""
