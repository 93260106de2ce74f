"""From a path or hub id to a policy: resolve, validate, then load."""
