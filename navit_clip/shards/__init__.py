"""Shards as things to make and look at: `navit-clip shards build`, `inspect` and `validate`."""
