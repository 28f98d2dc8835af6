"""A reader of pickles that calls nothing a file names.

`pickletools.genops` of the standard library takes a pickle apart into its opcodes; the
machine below runs them over plain values. A name that the pickle imports becomes an
inert `Global`, and "calling" it runs the maker that the reader registered under that
name. There is no way from here to an object of the interpreter: a name without a maker
is refused before anything is built of it.
"""

import pickletools

OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's names
SCALARS = (str, bytes, int, float, bool, type(None))

# opcodes whose argument is the value itself
VALUES = set(
    'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING '
    'SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES '
    'SHORT_BINBYTES BINBYTES8 BYTEARRAY8'.split()
)
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
CONTAINERS = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_SET': set}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class ForeignError(Exception):
    """The pickle names something that no checkpoint needs; `args[0]` is that name."""


class Global:
    """A name the pickle imports: inert, it stands for nothing but itself.

    Parameters
    ----------
    name : str
        Dotted, with Python 3's name for the module.
    """

    __slots__ = ('name',)

    def __init__(self, name):
        self.name = name


class Stateful:
    """A value that a pickle first creates and then fills by `set_state`."""

    def set_state(self, state):
        """Take what a pickle gives an object after it was made.

        Parameters
        ----------
        state : object
            Whatever the file holds: to be checked before use.
        """
        raise NotImplementedError


class Namespace(dict, Stateful):
    """An `argparse.Namespace`, as the dict of its fields."""

    def set_state(self, state):
        """Take the fields; ValueError if it is anything else.

        Parameters
        ----------
        state : dict
            The fields by name.
        """
        if not isinstance(state, dict):
            raise ValueError('a Namespace with a state other than its fields')
        self.update(state)


def check_key(key):
    """Return the key; ValueError if it may take for ever to hash (tuples of tuples).

    Parameters
    ----------
    key : object
        Of a pickled dict or set.

    Returns
    -------
    str, bytes, int, float, bool, None or tuple of these
        The key as it came.
    """
    if isinstance(key, SCALARS):
        return key
    if type(key) is tuple and all(isinstance(k, SCALARS) for k in key):
        return key
    raise ValueError('a key that is not a plain value')


def read_pickle(file, makers, persistent=None):
    """Read one pickle and stop behind it.

    Parameters
    ----------
    file : binary file
        At the pickle's first byte. `read(n)` must stop at the file's end before it
        reserves n bytes (`io.BytesIO` and `mmap` do).
    makers : dict
        Allowed dotted name → what builds its value from the pickled arguments, or None
        if the name may be mentioned but not called.
    persistent : callable, optional
        Turns a persistent id (PyTorch's way to refer to a storage) into a value.

    Returns
    -------
    object
        Plain values, containers of them, `Global` and what the makers built.

    Raises
    ------
    ForeignError
        The pickle names something outside `makers`, or calls what may not be called.
    ValueError, IndexError, KeyError, TypeError
        It is damaged.
    """
    return _Machine(makers, persistent).run(file)


class _Machine:
    def __init__(self, makers, persistent):
        self.makers = makers
        self.persistent = persistent
        self.stack = []
        self.marks = []  # heights of the stack
        self.memo = {}

    def run(self, file):
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name == 'STOP':
                return self.stack.pop()
            self.step(opcode.name, arg)
        raise ValueError('a pickle without an end')

    def step(self, op, arg):
        stack = self.stack
        if op in VALUES:
            stack.append(arg)
        elif op in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            self.memo[arg] = stack[-1]
        elif op == 'MEMOIZE':
            self.memo[len(self.memo)] = stack[-1]
        elif op in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(self.memo[arg])
        elif op == 'MARK':
            self.marks.append(len(stack))
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op in CONTAINERS:
            stack.append(CONTAINERS[op]())
        elif op in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[op])]
            stack.append(tuple(reversed(items)))
        elif op == 'TUPLE':
            stack.append(tuple(self.pop_mark()))
        elif op == 'LIST':
            stack.append(self.pop_mark())
        elif op == 'DICT':
            items = self.pop_mark()
            stack.append({})
            self.set_items(items)
        elif op == 'FROZENSET':
            stack.append(frozenset(map(check_key, self.pop_mark())))
        elif op in ('SETITEM', 'SETITEMS'):
            self.set_items(self.pop(2) if op == 'SETITEM' else self.pop_mark())
        elif op in ('APPEND', 'APPENDS'):
            items = self.pop(1) if op == 'APPEND' else self.pop_mark()
            self.top(list).extend(items)
        elif op == 'ADDITEMS':
            items = self.pop_mark()
            self.top(set).update(map(check_key, items))
        elif op == 'POP':
            stack.pop()
        elif op == 'POP_MARK':
            self.pop_mark()
        elif op == 'DUP':
            stack.append(stack[-1])
        elif op in ('GLOBAL', 'STACK_GLOBAL'):
            module, name = arg.split(' ', 1) if op == 'GLOBAL' else self.pop(2)
            stack.append(self.look_up(module, name))
        elif op in ('REDUCE', 'NEWOBJ'):
            func, args = self.pop(2)
            stack.append(self.call(func, args))
        elif op == 'NEWOBJ_EX':
            func, args, fields = self.pop(3)
            if fields:
                raise ForeignError(f'{_name(func)} called with named arguments')
            stack.append(self.call(func, args))
        elif op == 'INST':
            func = self.look_up(*arg.split(' ', 1))
            stack.append(self.call(func, tuple(self.pop_mark())))
        elif op == 'OBJ':
            func, *args = self.pop_mark()
            stack.append(self.call(func, tuple(args)))
        elif op == 'BUILD':
            self.build(*self.pop(1))
        elif op == 'BINPERSID' and self.persistent:
            stack.append(self.persistent(stack.pop()))
        elif op not in ('PROTO', 'FRAME'):
            # extension codes name code by number; buffers lie outside the file
            raise ForeignError(f"the pickle instruction '{op}'")

    def pop(self, n):
        if not 0 < n <= len(self.stack):
            raise ValueError('a pickle that takes more values than it has')
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def pop_mark(self):
        count = len(self.stack) - self.marks.pop()
        return self.pop(count) if count else []

    def top(self, kind):
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f'a pickle that adds items to what is no {kind.__name__}')
        return self.stack[-1]

    def set_items(self, items):
        if len(items) % 2:
            raise ValueError('a pickled key without its value')
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2]):
            target[check_key(key)] = value

    def look_up(self, module, name):
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError('a pickle that imports by something other than a name')
        name = f'{OLD_MODULES.get(module, module)}.{name}'
        if name not in self.makers:
            raise ForeignError(name)
        return Global(name)

    def call(self, func, args):
        maker = self.makers.get(func.name) if isinstance(func, Global) else None
        if maker is None:
            raise ForeignError(f'a call of {_name(func)}')
        if not isinstance(args, tuple):
            raise ValueError('pickled arguments that are no tuple')
        return maker(*args)

    def build(self, state):
        target = self.stack[-1]
        if isinstance(target, Stateful):
            target.set_state(state)
        elif not isinstance(target, dict):  # of an OrderedDict only the items count
            raise ForeignError(f'a state given to {_name(target)}')


def _name(value):
    # never the repr of a pickled value: nested ones may be of exponential size
    return value.name if isinstance(value, Global) else f'a {type(value).__name__}'
