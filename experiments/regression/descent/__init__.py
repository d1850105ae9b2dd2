"""Does the context do to a learner what gradient descent does?"""
