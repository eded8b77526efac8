"""What techniques here and their counterparts elsewhere do, refuse, or get wrong without a word.

Each file asks one question of several, and answers it by a computation of its own.
"""
