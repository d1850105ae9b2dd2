"""What can a transformer learn in context, and how far from its training does it go on?"""
