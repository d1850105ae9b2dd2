"""Static patches of regression contexts: used elsewhere, added up, and what they disturb."""
