"""Does a real model's context do what fine-tuning on its demonstrations does?"""
