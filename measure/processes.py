"""A process that is to be killed.

It is forked from a server that has the libraries loaded, so that a kill meets the work and not the imports."""
import multiprocessing as mp
import signal


def server(
    libraries: list[str],  # modules to load
):  # context of multiprocessing
    "A fork server that has loaded the libraries and has run nothing."
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(libraries)
    return context


def start(
    libraries: list[str],  # modules the server has loaded
    target,  # function of a module
    *args,  # its arguments
) -> mp.Process:  # running; it ends with this process
    "Call a function in a process of its own."
    p = server(libraries).Process(target=target, args=args, daemon=True)
    p.start()
    return p


def finish(
    p: mp.Process,  # from `start`
    limit: float,  # seconds
    what: str,  # named in the error
) -> bool:  # True: it ended by itself; False: it was killed, with SIGKILL
    "Let a process end, and kill it after so many seconds; an error of its own is an error here."
    p.join(limit)
    if p.exitcode is None:
        p.kill()
        p.join()
        if p.exitcode == -signal.SIGKILL: return False
    if p.exitcode: raise RuntimeError(f'{what} ended with exit code {p.exitcode}: its error stands above')
    return True
