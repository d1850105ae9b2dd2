"""A small GPT that sorts letters, and a page that walks through it."""
