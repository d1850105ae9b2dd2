"""Static patches of facts in a real model: used elsewhere, added up, and what they disturb."""
