"""OpenAI's client against a server on the loopback interface."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow

MAX_TOKENS = 48


def connect(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60, **options)


def complete(client, message, **options):
    options = {"max_tokens": MAX_TOKENS, **options}
    return client.chat.completions.create(model="demo", messages=[message], **options)


def read_stream(client, message, **options):
    """The text, the finish reason and the usage of a stream."""
    text, reason, usage = "", None, None
    stream = complete(client, message, stream=True, stream_options={"include_usage": True}, **options)
    for chunk in stream:
        if chunk.choices:
            assert reason is None and chunk.usage is None
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason
        usage = chunk.usage
    return text, reason, usage


def test_one_client(start_server, demo_messages, demo_questions, alone):
    client = connect(start_server())
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "local"
    for message, question in list(zip(demo_messages, demo_questions, strict=True))[:4]:
        text, tokens = alone(question, MAX_TOKENS)
        whole = complete(client, message)
        choice = whole.choices[0]
        assert choice.message.content == text and choice.message.role == "assistant"
        assert choice.finish_reason == ("length" if tokens == MAX_TOKENS else "stop")
        assert whole.usage.completion_tokens == tokens and whole.usage.prompt_tokens > 20
        assert read_stream(client, message) == (text, choice.finish_reason, whole.usage)


def test_eight_clients_at_once(start_server, demo_messages, demo_questions, alone):
    """Greedy answers are those of each alone, streamed or not."""
    client = connect(start_server(limits={"max_running": 5}))

    def ask(index):
        if index % 2:
            return read_stream(client, demo_messages[index])[0]
        return complete(client, demo_messages[index]).choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(8)))
    assert texts == [alone(question, MAX_TOKENS)[0] for question in demo_questions]


def test_sampling_and_stopping(start_server, demo_messages, demo_questions, alone):
    client = connect(start_server())
    message, question = demo_messages[0], demo_questions[0]

    def text(**options):
        return complete(client, message, **options).choices[0].message.content

    greedy, _ = alone(question, MAX_TOKENS)
    sampled, _ = alone(question, MAX_TOKENS, do_sample=True, temperature=1.5, top_p=0.9, seed=3)
    assert text(temperature=1.5, top_p=0.9, seed=3) == sampled
    assert text(temperature=0) == text(extra_body={"top_k": 0}) == greedy
    penalised, _ = alone(question, MAX_TOKENS, repetition_penalty=1.5)
    assert text(extra_body={"repetition_penalty": 1.5}) == penalised
    assert text(max_completion_tokens=2, max_tokens=40) == alone(question, 2)[0]
    stop = greedy[3:6]
    assert text(stop=stop) == greedy[: greedy.index(stop)]
    assert text(stop=["nowhere", stop]) == greedy[: greedy.index(stop)]


def test_several_turns(start_server, demo_messages, demo_questions, alone, demo_model, demo_processor):
    """System prompt, an answer sent back as it came, and the beginning of an answer to continue."""
    client = connect(start_server())
    first = complete(client, demo_messages[0]).choices[0].message
    messages = [
        {"role": "system", "content": "Be brief."},
        demo_messages[0],
        first,
        {"role": "user", "content": "How many are there?"},
        {"role": "assistant", "content": "There"},
    ]
    reply = client.chat.completions.create(model="demo", messages=messages, max_tokens=8)
    batch = demo_processor(
        conversations=[
            demo_questions[0],
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "How many are there?"},
            {"role": "assistant", "content": "There"},
        ],
        system_prompt="Be brief.",
    )
    assert reply.usage.prompt_tokens == batch["input_ids"].shape[1]
    ids = demo_model.generate(**batch, max_new_tokens=8)[0][0].tolist()
    assert reply.choices[0].message.content == demo_processor.tokenizer.decode(
        [token for token in ids if token != demo_processor.tokenizer.eos_token_id]
    )


def test_a_client_that_leaves_a_stream_frees_its_row(start_server, demo_messages, gated, wait_until):
    server = start_server(gated)
    stream = complete(connect(server), demo_messages[0], stream=True)
    next(iter(stream))
    wait_until(lambda: server.metric("vl2_running_rows") == 1, "the row runs")
    stream.close()
    gated.permits.release()
    wait_until(lambda: server.metric("vl2_running_rows") == 0, "the row is free")
    assert server.metric('vl2_answers_total{finish_reason="cancelled"}') == 1
    assert server.metric("vl2_completion_tokens_total") < MAX_TOKENS


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_frees_its_place(
    start_server, demo_messages, gated, wait_until, stream
):
    server = start_server(gated, {"max_running": 1})
    client = connect(server)
    running = complete(client, demo_messages[0], stream=True)
    wait_until(lambda: server.metric("vl2_running_rows") == 1, "the row runs")
    impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60)
    thread = threading.Thread(target=lambda: _ignore(complete, impatient, demo_messages[1], stream=stream))
    thread.start()
    wait_until(lambda: server.metric("vl2_waiting_requests") == 1, "the second waits")
    with httpx.Client() as raw:
        body = {"model": "demo", "messages": [demo_messages[2]], "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            if stream:
                with raw.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=1) as reply:
                    list(reply.iter_bytes())
            else:
                raw.post(f"{server.url}/v1/chat/completions", json=body, timeout=1)
    cancelled = 'vl2_answers_total{finish_reason="cancelled"}'
    wait_until(lambda: server.metric(cancelled) == 1, "the third is given up")
    assert server.metric("vl2_waiting_requests") == 1, "it has left the queue, the second has not"
    assert stream or server.metric('vl2_requests_total{status="499"}') == 1
    gated.open()
    assert [chunk.choices[0].finish_reason for chunk in running][-1] is not None
    thread.join(60)


def _ignore(call, *arguments, **options):
    reply = call(*arguments, **options)
    return list(reply) if options["stream"] else reply


def test_a_full_queue(start_server, run_and_wait, demo_messages, gated):
    server = start_server(gated, {"max_running": 1, "max_waiting": 1})
    with ThreadPoolExecutor(2) as pool:
        first, second = run_and_wait(server, pool)
        with pytest.raises(openai.RateLimitError) as caught:
            complete(connect(server), demo_messages[2])
        assert caught.value.code == "queue_full" and caught.value.response.headers["retry-after"] == "1"
        gated.open()
        assert first.result()[1] and second.result().choices
    assert server.metric('vl2_requests_total{status="429"}') == 1


@pytest.fixture
def run_and_wait(demo_messages, wait_until):
    """``run_and_wait(server, pool)``: one request that streams and runs, another that waits, as futures."""

    def begin(server, pool):
        first = pool.submit(read_stream, connect(server), demo_messages[0])
        wait_until(lambda: server.metric("vl2_running_rows") == 1, "the first runs")
        second = pool.submit(complete, connect(server), demo_messages[1])
        wait_until(lambda: server.metric("vl2_waiting_requests") == 1, "the second waits")
        return first, second

    return begin


def test_the_end_of_the_server_waits_for_answers(start_server, run_and_wait, gated, wait_until):
    """What SIGTERM does: running and waiting requests are answered, new ones are not accepted."""
    server = start_server(gated, {"max_running": 1})
    with ThreadPoolExecutor(3) as pool:
        first, second = run_and_wait(server, pool)
        server.begin_to_stop()
        wait_until(lambda: not _accepts(server), "no connection is accepted")
        gated.open()
        assert first.result()[1] in ("stop", "length")
        assert second.result().choices[0].finish_reason in ("stop", "length")
    server.wait()
    assert not server.service.is_healthy


def test_the_end_of_the_server_is_bounded(start_server, run_and_wait, gated):
    server = start_server(gated, {"max_running": 1}, stop_timeout=0.2)
    with ThreadPoolExecutor(3) as pool:
        first, second = run_and_wait(server, pool)
        server.begin_to_stop()
        with pytest.raises(openai.InternalServerError, match="ended before the answer"):
            second.result()
        gated.permits.release()
        with pytest.raises(openai.APIError, match="ended before the answer"):
            first.result()
    server.wait()


def _accepts(server) -> bool:
    try:
        httpx.get(f"{server.url}/health", timeout=5)
    except httpx.TransportError:
        return False
    return True


def test_a_failing_model(start_server, demo_messages, gated):
    server = start_server(gated)
    gated.failing = "step"
    gated.open()
    for count in range(3):
        with pytest.raises(openai.InternalServerError if count % 2 else openai.APIError, match="is gone"):
            if count % 2:
                complete(connect(server), demo_messages[0])
            else:
                read_stream(connect(server), demo_messages[0])
    assert httpx.get(f"{server.url}/health").status_code == 503
    gated.failing = ""
    assert complete(connect(server), demo_messages[0]).choices
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
