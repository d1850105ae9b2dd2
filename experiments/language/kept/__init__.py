"""How much of an in-context task real models keep as weights."""
