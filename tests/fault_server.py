"""An OpenAI-compatible endpoint on 127.0.0.1 that answers like the symbolic teacher and breaks in seeded ways.

It runs in a process of its own (`with FaultServer(share=.2) as s: s.url`), counts what it was asked and what it sent
in full, and ends with the process that started it. What happens to a request depends on the seed, on the text asked
and, for what passes by itself, on how often it was asked. It can also speak as other servers do (see `Faults`)."""

import asyncio
import functools
import hashlib
import json
import random
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PASSING = '429', '500', 'late', 'hang', 'reset', 'malformed'  # another try may go through
LASTING = 'empty', 'cut', 'tags', 'answer'  # the reply arrives and is no good
REFUSED = ('400',)  # no reply, however often it is asked


@dataclass(frozen=True)
class Faults:
    "How the server behaves."

    share: float = 0.0  # of the requests that meet a fault
    kinds: tuple = (*PASSING, *LASTING)
    seed: int = 0
    latency: float = 0.0  # seconds before a reply
    hang: float = 30.0  # seconds of silence, longer than the client waits
    retry_after: float = 0.05  # seconds
    key: str = ''  # the only key accepted; '' = any. A wrong one is repeated in the error message
    idempotent: bool = False  # send a stored reply again, unbilled, when an Idempotency-Key comes back
    fixed: str = ''  # reply with this text to everything
    around: str = '{}'  # what stands around a reply
    finish: str | None = 'stop'  # how the server calls the end of a whole reply
    counts: str = 'true'  # tokens: true, zeros, or none (no usage)
    unknown: tuple = ()  # fields of a request that are answered with status 400
    body: str = ''  # of a refusal, as it is; '' = OpenAI's form, with `says`
    says: str = 'internal'  # the words of a refusal


@functools.lru_cache(4096)
def good_reply(messages: str) -> tuple[str, str, str]:  # JSON of the messages -> critique, reasoning, answer
    "Write what the symbolic teacher says of the rollout that the prompt shows."
    from mcft.pocket import teach

    page = json.loads(messages)[0]['content']
    question, rest = page.split('Question:\n', 1)[1].split("\n\nThe student's work:\n", 1)
    t = teach(question, rest.split('\n\nWhat to do:\n', 1)[0])
    without_tags = re.compile(r'</?(?:critique|reasoning|ans)>')  # a student may write them, and a critique quotes it
    return tuple(without_tags.sub('', t[k]) for k in ('critique', 'reasoning', 'answer'))


def reply_text(messages: str, kind: str, fixed: str = '') -> str:
    "The text of a reply, with the fault that lasts."
    from mcft.format import target_text

    if fixed:
        return fixed
    critique, reasoning, answer = good_reply(messages)
    text = target_text(critique, reasoning, str(int(answer) + 1) if kind == 'answer' else answer)
    no_tags = text.replace('</critique>', '').replace('<reasoning>', '')
    return dict(empty='', cut=text[: len(text) // 2], tags=no_tags).get(kind, text)


class Server:
    "State and handlers."

    def __init__(self, how: Faults):
        self.how, self.kinds, self.stored = how, Counter(), {}
        self.seen, self.sent, self.billed, self.malformed, self.of = Counter(), Counter(), Counter(), Counter(), {}

    def kind(self, text: str) -> str:  # '' = none
        "Draw the fault: lasting ones by the text asked, passing ones by the number of the request too."
        h, lasting = self.how, [k for k in self.how.kinds if k in (*LASTING, *REFUSED)]
        n_passing = len(h.kinds) - len(lasting)
        rng = random.Random(f'{h.seed} {text}')
        if lasting and rng.random() < h.share * len(lasting) / len(h.kinds):
            return rng.choice(lasting)
        rng = random.Random(f'{h.seed} {text} {self.seen[text]}')
        passing = [k for k in h.kinds if k in PASSING]
        return rng.choice(passing) if passing and rng.random() < h.share * n_passing / len(h.kinds) else ''

    def completion(self, body: dict, messages: str, kind: str) -> dict:
        text = self.how.around.replace('{}', reply_text(messages, kind, self.how.fixed))
        finish = 'length' if kind == 'cut' else self.how.finish
        choice = dict(index=0, finish_reason=finish, message=dict(role='assistant', content=text))
        n_in, n_out = (0, 0) if self.how.counts == 'zeros' else (len(messages) // 4, len(text) // 4)
        usage = dict(prompt_tokens=n_in, completion_tokens=n_out, total_tokens=n_in + n_out)
        return dict(
            id='chatcmpl-0',
            object='chat.completion',
            created=0,
            model=body['model'],
            choices=[] if kind == 'empty' else [choice],
            usage=None if self.how.counts == 'none' else usage,
        )

    def refusal(self, status: int, says: str, headers: dict | None = None):
        from aiohttp import web

        if self.how.body:
            return web.Response(text=self.how.body, status=status, headers=headers)
        return web.json_response(dict(error=dict(message=says)), status=status, headers=headers)

    async def chat(self, request):
        from aiohttp import web

        if self.how.key and request.headers.get('Authorization') != f'Bearer {self.how.key}':
            return web.json_response(
                dict(error=dict(message=f"bad key {request.headers.get('Authorization')}", code='invalid_api_key')),
                status=401,
            )
        body = await request.json()
        messages = json.dumps(body['messages'])
        text = hashlib.sha256(messages.encode()).hexdigest()[:16]
        name = request.headers.get('Idempotency-Key', '')
        self.of.setdefault(name.removeprefix('mcft-').rpartition('-')[0], text)
        kind = self.kind(text)
        self.seen[text] += 1
        self.kinds[kind or 'none'] += 1
        for name in self.how.unknown:
            if name in body:
                return self.refusal(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        if kind == '429':
            return self.refusal(429, 'slow down', {'Retry-After': str(self.how.retry_after)})
        if kind in ('400', '500'):
            return self.refusal(int(kind), self.how.says)
        await asyncio.sleep(self.how.hang if kind == 'hang' else self.how.latency * (3 if kind == 'late' else 1))
        if self.how.idempotent and name in self.stored:
            data = self.stored[name]
        else:
            data = json.dumps(self.completion(body, messages, kind)).encode()
            self.billed[text] += 1
            if self.how.idempotent:
                self.stored[name] = data
        return await self.send(request, data, kind, text)

    async def send(self, request, data: bytes, kind: str, text: str):
        "Count a reply as sent when its last byte has left."
        from aiohttp import web

        if kind == 'malformed':
            self.malformed[text] += 1
            return web.Response(body=data[: len(data) // 2], content_type='application/json')
        response = web.StreamResponse(headers={'Content-Type': 'application/json', 'Content-Length': str(len(data))})
        try:
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            if kind == 'reset':
                request.transport.abort()
                return response
            await response.write(data[len(data) // 2 :])
            await response.write_eof()
        except ConnectionResetError:
            return response  # the client is gone: not sent
        self.sent[text] += 1
        return response

    async def counts(self, request):
        from aiohttp import web

        return web.json_response(
            dict(kinds=self.kinds, seen=self.seen, sent=self.sent, billed=self.billed, malformed=self.malformed,
                 text_of=self.of)
        )


async def serve(how: Faults):
    "Listen on a free port, say which, and go on until standard input closes."
    from aiohttp import web

    server, app = Server(how), web.Application(client_max_size=2**26)
    app.router.add_post('/v1/chat/completions', server.chat)
    app.router.add_get('/counts', server.counts)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


class FaultServer:
    "The server in a process of its own."

    def __init__(self, **how):
        self.how = Faults(**how)

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(self.how))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())
        self.url = f'http://127.0.0.1:{self.port}/v1'
        return self

    def counts(self) -> dict:
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/counts', timeout=30) as f:
            return json.load(f)

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    asyncio.run(serve(Faults(**json.loads(sys.argv[1]))))
