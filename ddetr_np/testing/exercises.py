"""The exercises of the walkthroughs: checks that tell, and stop nothing."""

NOT_YET, RIGHT = 'Not yet', 'Right'


def exercise(title):
    """Make an exercise of a function that asserts what a solution has to do.

    It is tried at once, and again whenever it is called. What comes of it is printed:
    a reader's attempt may fail in any way without ending a notebook.

    Parameters
    ----------
    title : str
        Printed in brackets after the outcome.

    Returns
    -------
    callable
        Decorates a function without arguments; that becomes one that prints.

    Examples
    --------
    >>> def half(x):
    ...     ...                                     # your code
    >>> @exercise('half')
    ... def check():
    ...     assert half(4) == 2, f'half(4) is {half(4)}'
    Not yet (half): half(4) is None
    >>> def half(x):
    ...     return x / 2
    >>> check()
    Right (half).
    """

    def make(test):
        def check():
            try:
                test()
            except Exception as error:
                name = '' if isinstance(error, AssertionError) else type(error).__name__
                said = ': '.join(part for part in (name, str(error).strip()) if part)
                print(f'{NOT_YET} ({title}): {said or "the check fails"}')
            else:
                print(f'{RIGHT} ({title}).')

        check()
        return check

    return make
