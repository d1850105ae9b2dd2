"""A page on which every token of a prompt is coloured by its share of the update."""
