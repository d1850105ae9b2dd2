"""Does linear attention learn one step of gradient descent?"""
