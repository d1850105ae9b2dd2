"""Does a real model answer without its context, from patched weights?"""
