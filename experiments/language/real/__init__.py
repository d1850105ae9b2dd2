"""Two real trained models: what a context does to them, and what its patches keep of it."""
