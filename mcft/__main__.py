"""`python -m mcft --version` names the version; `python -m mcft` all versions that can change a result, as a bug report wants them."""
import sys

from mcft import __version__


def main(args: list[str]) -> int:  # words after the command -> exit status
    "Say which version this is."
    if args in (['--version'], ['-V']): print(f'mcft {__version__}')
    elif args:
        print(f"mcft has no {' '.join(args)!r}: python -m mcft [--version]", file=sys.stderr)
        return 2
    else:
        from mcft.core import versions
        for name, version in versions().items(): print(name, version)
    return 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
