"""Chat endpoints against a server process: what is sent, what comes back, failures in the middle, prices, pace, the cache."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from limbeck.cache.chat import Chat, ChatEndpoint, read_reply
from limbeck.data.chat import Cached, Function, Messages, Reply, ReplyCache, Sampling, collected, conversation, replaced
from limbeck.data.numerals import roman
from limbeck.errors import ConfigError
from tests.cache.chatting import serving

HOW = Sampling(0.2, 0.1, 16)


def questions(n: int, first: int = 1) -> list[Messages]:
    return [(("system", "Reply with the number."), ("user", roman(k))) for k in range(first, first + n)]


def endpoint(url: str, key: str | None = None, **settings: Any) -> ChatEndpoint:
    given = {"timeout": 10.0, "retries": 0, "wait": 0.01, "parallel": 1, **settings}
    return ChatEndpoint(Chat(url, "small", **given), key)


def test_questions_go_out_as_chat_completions_and_replies_and_tokens_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, key="k3y") as server:
        one = endpoint(server.url, "k3y", parallel=3, price_in=1.0, price_out=100.0)
        found = collected(one, questions(6), [Sampling(0.5, 0.9, 33, seed=4, number=2)] * 6)
        assert [r.text for r in found] == ["1", "2", "3", "4", "5", "6"] and all(r.finished for r in found)
        assert found[0].asked == 5 and found[0].tokens == 7
        assert (one.calls, one.asked, one.tokens) == (6, 30, 42) and one.spent == pytest.approx((30 + 4200) / 1e6)
        (sent, *_) = server.sent
        assert {k: sent[k] for k in ("model", "temperature", "top_p", "max_tokens", "seed")} == {
            "model": "small", "temperature": 0.5, "top_p": 0.9, "max_tokens": 33, "seed": 6,
        }  # fmt: skip
        assert sent["messages"][0] == {"role": "system", "content": "Reply with the number."}
        with pytest.raises(ConfigError, match=r"other credentials.*token_env"):
            collected(endpoint(server.url, "wrong"), questions(1), [HOW])


def test_cut_empty_refused_and_malformed_replies_are_told_apart(tmp_path: Path) -> None:
    odd = {"1": "cut", "2": "empty", "3": "refused", "4": "html", "5": "filter", "6": "null"}
    with serving(tmp_path, odd=odd) as server:
        found = collected(endpoint(server.url), questions(7), [HOW] * 7)
    assert [r.cause for r in found] == ["length", "stop", "refused", "malformed", "refused", "stop", "stop"]
    assert [r.text for r in found] == ["1", "", "", "", "", "", "7"]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("[]", "malformed"),
        ('{"choices": []}', "malformed"),
        ('{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}', "malformed"),
        ('{"choices": [{"message": {"content": "x"}}]}', "length"),  # nobody knows whether it ended
        ('{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}', "refused"),
        ('{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": -3}}', "stop"),
        ("[" * 100000, "malformed"),
    ],
)  # fmt: skip
def test_replies_of_every_form(body: str, cause: str) -> None:
    reply = read_reply(body.encode())
    assert reply.cause == cause and reply.asked == 0
    reply.text.encode()


def test_a_server_that_dies_in_the_middle_costs_no_reply_twice(tmp_path: Path) -> None:
    path, asked = tmp_path / "replies" / "x.jsonl", questions(10)
    with serving(tmp_path, die=5) as server:
        port = int(server.url.rpartition(":")[2].split("/")[0])
        first = Cached(endpoint(server.url), ReplyCache(path))
        with pytest.raises(ConfigError, match=r"after 4 replies.*run the same again") as caught:
            collected(first, asked, [HOW] * 10)
        assert caught.value.argument == "teacher.url" and len(ReplyCache(path)) == first.calls == 4
    with serving(tmp_path, port=port) as server:
        second = Cached(endpoint(server.url), ReplyCache(path))
        assert second.missing(asked, [HOW] * 10) == [4, 5, 6, 7, 8, 9]
        found = collected(second, asked, [HOW] * 10)
        assert second.calls == len(server.sent) == 6 and [r.text for r in found] == [str(k) for k in range(1, 11)]
        third = Cached(endpoint(server.url), ReplyCache(path))
        assert collected(third, asked, [HOW] * 10) == found and third.calls == 0
        warmer = Sampling(0.9, 0.1, 16)
        assert collected(third, asked, [warmer] * 10) and third.calls == 10  # other sampling is another question
    other = endpoint(server.url)
    other.identity = "chat:another"
    assert len(Cached(other, ReplyCache(path)).missing(asked, [HOW] * 10)) == 10  # so is another model


def test_busy_endpoints_are_asked_again_and_broken_ones_are_not(tmp_path: Path) -> None:
    with serving(tmp_path, busy=2) as server:
        assert collected(endpoint(server.url, retries=2), questions(1), [HOW])[0].text == "1"
        assert len(server.sent) == 3
    with serving(tmp_path, busy=9) as server, pytest.raises(ConfigError, match=r"429.*3 times.*per_minute"):
        collected(endpoint(server.url, retries=2), questions(1), [HOW])
    with serving(tmp_path, odd={"all": "error"}) as server:
        with pytest.raises(ConfigError, match="status 500: out of order"):
            collected(endpoint(server.url, retries=3), questions(4), [HOW] * 4)
        assert len(server.sent) == 1  # nothing more was asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ConfigError, match="does not answer"):
        collected(endpoint(url, retries=1), questions(2), [HOW] * 2)


def test_so_many_questions_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        collected(endpoint(server.url, parallel=4, per_minute=1200), questions(5), [HOW] * 5)
        at = sorted(x["at"] for x in server.sent)
    assert at[-1] - at[0] >= 0.14  # four pauses of 50 ms, the first question a little late


def test_side_by_side_is_faster(tmp_path: Path) -> None:
    with serving(tmp_path, slow=0.1) as server:
        collected(endpoint(server.url, parallel=8), questions(8), [HOW] * 8)
        at = sorted(x["at"] for x in server.sent)
    assert at[-1] - at[0] < 0.35  # one after another they would take 0.7 s


def test_a_budget_is_kept_before_anything_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        one = endpoint(server.url, price_in=1000.0, price_out=1000.0, budget=0.05)
        price = one.price(questions(100), [HOW] * 100)
        assert price.questions == 100 and price.tokens == 1600 and price.cost > 1.6
        with pytest.raises(ConfigError, match="100 questions may cost up to") as caught:
            collected(one, questions(100), [HOW] * 100)
        assert caught.value.argument == "teacher.budget" and not server.sent
        collected(one, questions(1), [HOW])
        one.asked = 1000  # what was spent counts
        with pytest.raises(ConfigError, match="that are spent"):
            collected(one, questions(1, 9), [HOW])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "ftp://x"}, "http"),
        ({"url": "http://x/v1?key=1"}, "nothing behind"),
        ({"model": " "}, "model must"),
        ({"token_env": "A", "token_file": "b"}, "name one of them"),
        ({"budget": 3.0}, "needs prices"),
        ({"parallel": 0}, "parallel must be"),
        ({"price_in": -1.0}, "price_in must be"),
        ({"retries": 101}, "retries must be"),
    ],
)
def test_settings_that_are_none(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Chat(**{"url": "http://x/v1", "model": "m", **changes})


def test_a_name_and_password_go_out_and_are_written_down_nowhere(tmp_path: Path) -> None:
    chat = Chat("https://me:secret@host/v1", "m")
    assert "secret" not in chat.url and "secret" not in ChatEndpoint(chat).identity
    with pytest.raises(ConfigError, match="text alone"):
        ChatEndpoint(chat).answer({})


# ------------------------------------------------------------------------------------------------------------- the cache


def test_a_torn_line_is_passed_over_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    cache = ReplyCache(path)
    cache.put("a", Reply("A\u2028\n\ud7ff", "stop", 1, 2))
    cache.put("m", Reply("", "malformed"))
    with open(path, "a") as file:
        file.write('{"key": "b", "text": "cut o')
    again = ReplyCache(path)
    assert again.torn == 1 and set(again.known) == {"a"} and again.known["a"] == Reply("A\u2028\n\ud7ff", "stop", 1, 2)
    again.put("c", Reply("C", "length"))
    last = ReplyCache(path)
    assert set(last.known) == {"a", "c"} and last.torn == 1
    for line in ("[]", '{"key": 1, "text": "x", "cause": "stop", "asked": 1, "tokens": 1}', '{"key": "z", "text": 3}',
                 json.dumps({"key": "q", "text": "x", "cause": "other", "asked": 0, "tokens": 0})):  # fmt: skip
        path.write_text(line + "\n")
        assert ReplyCache(path).torn == 1


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    said = []

    def fn(messages: list[dict[str, str]], how: Sampling) -> str:
        said.append(messages[-1]["content"])
        return messages[-1]["content"].lower()

    one = Cached(Function(fn), ReplyCache(tmp_path / "x.jsonl"))
    asked: list[Messages] = [[("user", "A")], [("user", "B")], [("user", "A")]]
    assert [r.text for r in collected(one, asked, [HOW] * 3)] == ["a", "b", "a"] and said == ["A", "B"]
    with pytest.raises(ConfigError, match="returns a text"):
        collected(Function(lambda m, s: 3), asked[:1], [HOW])  # type: ignore[arg-type, return-value]


def test_every_answer_of_a_conversation_is_replaced_and_stays_in_context() -> None:
    seen: list[list[str]] = []

    def fn(messages: list[dict[str, str]], how: Sampling) -> str:
        seen.append([m["content"] for m in messages])
        return "" if messages[-1]["content"] == "stop" else f"<{messages[-1]['content']}>"

    talk = [("system", "s"), ("user", "a"), ("assistant", "x"), ("user", "b"), ("assistant", "y"), ("user", "c")]
    short = [("user", "stop"), ("assistant", "x"), ("user", "b"), ("assistant", "y")]
    said = conversation(Function(fn), [talk, short], [HOW, HOW])
    assert [[r.text for r in s] for s in said] == [["<a>", "<b>"], [""]]  # an empty one ends it
    assert seen[-1] == ["s", "a", "<a>", "b"]
    assert replaced(talk, ["<a>", "<b>"])[-1] == ("assistant", "<b>") and len(replaced(talk, ["<a>", "<b>"])) == 5
