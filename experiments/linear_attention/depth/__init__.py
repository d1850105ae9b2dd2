"""Do k layers of linear attention take k steps of gradient descent?"""
