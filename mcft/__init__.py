__version__ = "0.1.0"

import sys


class _Extras:
    """The finder that Python asks last, so nothing has the module: an import in mcft then says which extra of the package brings it.
    Whoever only asks whether a module is there, and every other package, gets Python's own answer."""
    @staticmethod
    def find_spec(name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_globals.get('__name__') == 'importlib._bootstrap': frame = frame.f_back
        if frame.f_globals.get('__package__') != 'mcft': return
        import re
        from importlib.metadata import PackageNotFoundError, requires
        try: rows = requires('mcft') or ()
        except PackageNotFoundError: return
        pairs = (re.match(r'([\w.-]+).*extra == .(\w+)', r) for r in rows)
        extras = {m[2] for m in pairs if m and m[1].lower().replace('-', '_') == name.lower()} - {'dev'}
        if extras: raise ModuleNotFoundError(f"No module named {name!r}: it comes with an extra, pip install 'mcft[{min(extras)}]' (in a clone: '.[{min(extras)}]')", name=name)


sys.meta_path.append(_Extras)
