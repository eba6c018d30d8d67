"""Answers that cite are learnt in further contexts: their passages among others that the search finds, or missing.

Each context is drawn by the tool that a run searches with, over the documents as they are now, and is part of a record;
so it is rendered, and masked from the loss, as what was served. Where the cited passages are left out, so is what says
the same or supports the answer, and the target is to hand over. Source: RAFT (Zhang et al., 2024), which leaves them
out in a share of cases.

Not drawn anew are answers that did not directly follow the only search of their run. Labels are renumbered in the
citations, and as `[1]` in words; a label that is spelt otherwise is not seen. The tools' side effects are never
repeated: of all tools the search alone is called.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from agent.grounding.check import evidence_of, ground
from agent.grounding.claims import is_chinese
from agent.knowledge.fusion import alike
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.render import Frame
from agent.llm.prompt.step_grammar import ToolSpec
from agent.privacy.redaction import Scrubber, has_placeholder
from agent.records.run import Step, ToolCall
from agent.run.tools import call_tool, shortened
from agent.runtime import Runtime
from agent.text.sentences import sentences
from tools.context import Passage, Retriever, ToolContext
from tuner.data.curate import TrainingRow

SEARCH = "search_knowledge"
Search = Callable[[str, int], Sequence[Passage]]

DEEPER = 4
"""How many times as many passages are looked through as a search shows."""
SAID_BY = 2
"""Runs that must have handed over in the same words for these to be what abstaining is taught with."""
REASON = "The documents do not say."
REASON_CHINESE = "文档中没有相关说明。"
THOUGHT = "No passage says it."
"""What is said where people have not said it; `THOUGHT` only where the model writes thoughts."""


@dataclass(frozen=True)
class Drawn:
    """The rows, in the order of those that they were made from."""

    rows: tuple[TrainingRow, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """`cited`: the answers that they were made from; `among_others` and `missing`: the rows of either kind."""


@dataclass(frozen=True)
class _Cited:
    """An answer that cites passages of the search before it."""

    row: TrainingRow
    index: int
    """Of the answer; the search is the step before it."""
    passages: tuple[Passage, ...]
    """Those that are cited, as they were shown."""
    alone: bool
    """Whether the run did nothing else that counts."""

    @property
    def search(self) -> Step:
        return self.row.trajectory.steps[self.index - 1]

    @property
    def answer(self) -> Step:
        return self.row.targets[self.index]

    @property
    def text(self) -> str:
        assert self.answer.call is not None
        return str(self.answer.call.arguments.get("text", ""))


def draw_contexts(runtime: Runtime, rows: Sequence[TrainingRow]) -> Drawn:
    """Up to `tuning.contexts` further rows for each answer among `rows` that cites passages.

    A row belongs to the run and the task of the answer. In the share `tuning.abstain` the cited passages are missing;
    never where the run did something else before, which the customer would not be told of. What cannot be drawn, or
    would be there twice, is left out, so that there may be fewer. The same rows, documents and `tuning.seed` give the
    same contexts.
    """
    chosen = runtime.project.settings.tuning
    if not chosen.contexts:
        return Drawn()
    frame = runtime.frame()
    cited = list(_cited(rows, frame))
    if not cited or runtime.documents_version() == "none":
        return Drawn()
    handing_over = _handing_over(rows, frame)
    made: dict[str, list[TrainingRow]] = {"among_others": [], "missing": []}
    drawn: list[TrainingRow] = []
    for one in cited:
        find = lru_cache(partial(runtime.memory.search, join=False))
        known = {one.search.observation}
        for number in range(chosen.contexts):
            chance = random.Random(f"{chosen.seed} {one.row.run} {one.index} {number}")
            others = _Others(find, one, chance, number)
            kind = "missing" if one.alone and chance.random() < chosen.abstain else "among_others"
            if kind == "missing":
                row = _missing(runtime, one, handing_over or _neutral(one, frame), others)
            else:
                row = _among_others(runtime, one, others)
            if row is None or (context := row.trajectory.steps[one.index - 1].observation) in known:
                continue
            known.add(context)
            made[kind].append(row)
            drawn.append(row)
    counts = {"cited": len(cited)} | {kind: len(rows) for kind, rows in made.items()}
    return Drawn(tuple(drawn), counts)


def told_contexts(counts: Mapping[str, int]) -> str:
    """How many rows were drawn, in words."""
    if not counts:
        return "none"
    return f"{counts['among_others']} among other passages, {counts['missing']} with the answer missing"


def _cited(rows: Sequence[TrainingRow], frame: Frame) -> Iterator[_Cited]:
    """Each answer once, also where a run that was taken up behind a correction says it again."""
    seen: set[str] = set()
    answering = {tool.name for tool in frame.tools if tool.ends == "answered"}
    for row in rows:
        for index, target in sorted(row.targets.items()):
            found = _cited_by(row, index) if target.call is not None and target.call.name in answering else None
            if found is None or target.call is None:
                continue
            words = canonical([row.task, found.search.observation, dict(target.call.arguments)])
            if words not in seen:
                seen.add(words)
                yield found


def _cited_by(row: TrainingRow, index: int) -> _Cited | None:
    before, call = row.trajectory.steps[:index], row.targets[index].call
    searches = [place for place, step in enumerate(before) if _searched(step)]
    if call is None or not index or searches != [index - 1]:
        return None
    query = before[-1].call.arguments.get("query") if before[-1].call is not None else None
    labels = call.arguments.get("citations") or ()
    shown = {passage.label: passage for passage in before[-1].passages}
    if not labels or not set(labels) <= shown.keys() or not isinstance(query, str) or has_placeholder(query):
        return None
    alone = all(step.call is None or step.error is not None for step in before[:-1])
    return _Cited(row, index, tuple(shown[label] for label in dict.fromkeys(labels)), alone)


def _searched(step: Step) -> bool:
    return step.call is not None and step.call.name == SEARCH and step.error is None


def _among_others(runtime: Runtime, one: _Cited, others: _Others) -> TrainingRow | None:
    """The cited passages under other labels, among the best-ranked others; the answer cites them where they now are."""
    searched = _search_anew(runtime, one, others.beside(one.passages))
    labels = {passage.id: passage.label for passage in searched.passages}
    if not {passage.id for passage in one.passages} <= labels.keys():
        return None
    answer = _renumbered(one.answer, {passage.label: labels[passage.id] for passage in one.passages})
    return None if answer is None else _row(one, searched, answer)


def _missing(runtime: Runtime, one: _Cited, target: Step | None, others: _Others) -> TrainingRow | None:
    """What the search shows without what answers the question; the target is to hand over."""
    had = one.row.trajectory.provenance.tools
    if target is None or target.call is None or (had and target.call.name not in had):
        return None
    searched = _search_anew(runtime, one, others)
    shown = evidence_of([searched])
    if shown:
        checked = ground(one.text, shown, lambda: runtime.encoder).sentences
        if any(sentence.supported for sentence in checked):
            return None
    return _row(one, searched, target)


def _row(one: _Cited, searched: Step, target: Step) -> TrainingRow:
    trajectory = one.row.trajectory
    steps = (*trajectory.steps[: one.index - 1], searched, target)
    return replace(one.row, kind="drawn", trajectory=replace(trajectory, steps=steps), targets={one.index: target})


# -- searching -----------------------------------------------------------------------------------------------


def _search_anew(runtime: Runtime, one: _Cited, retriever: Retriever) -> Step:
    """The step that searched, with what the tool gives over another retriever; masked as a run's is."""
    task, call = one.row.trajectory.task, one.search.call
    assert call is not None
    with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
        context = ToolContext(
            Path(scratch),
            runtime.project.folder,
            facts=dict(task.facts),
            task=task.text,
            retriever=retriever,
        )
        tool = next(tool for tool in runtime.tools(context, [SEARCH]) if tool.name == SEARCH)
        text, passages = call_tool(tool, call)
    text = shortened(text)
    if runtime.project.settings.privacy.scrub:
        scrubber = Scrubber()
        for said in (*task.facts.values(), task.text, text):
            scrubber.mask(said)
        text = scrubber.mask(text)
        passages = tuple(replace(passage, text=scrubber.mask(passage.text)) for passage in passages)
    return replace(one.search, observation=text, passages=passages)


class _Others:
    """The documents as one answer is to see them: what the search finds, less what it cites or might have cited."""

    def __init__(
        self,
        find: Search,
        one: _Cited,
        chance: random.Random,
        number: int,
        kept: Sequence[Passage] = (),
    ) -> None:
        self._find = find
        self._one = one
        self._chance = chance
        self._number = number
        self._first = random.Random(f"{one.row.run} {one.index}").randrange(1000)
        self._kept = kept

    def beside(self, kept: Sequence[Passage]) -> _Others:
        """These, and always those that are kept."""
        return _Others(self._find, self._one, self._chance, self._number, kept)

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """The best-ranked others, one rank deeper for each number, in any order; nothing if what is kept is gone.

        The first of what is kept stands anywhere for number 0, then one place further on for each number, so that no
        label is learnt by heart.
        """
        found = self._find(query, DEEPER * k)
        there = {id for passage in found for id in _pieces(passage)}
        if any(not _pieces(passage) <= there for passage in self._kept):
            return ()
        room = max(0, k - len(self._kept))
        others = [passage for passage in found if not self._says_the_same(passage)][: room + self._number]
        shown = [*self._kept, *self._chance.sample(others, min(room, len(others)))]
        self._chance.shuffle(shown)
        if self._kept:
            turn = (shown.index(self._kept[0]) - self._first - self._number) % len(shown)
            shown = shown[turn:] + shown[:turn]
        return shown

    def _says_the_same(self, passage: Passage) -> bool:
        """Whether a passage is a cited one or a piece of it, says the same, or holds a sentence of the answer."""
        text = _plain(passage.text)
        return any(
            _pieces(passage) & _pieces(cited)
            or alike(passage.text, cited.text)
            or text in _plain(cited.text)
            or _plain(cited.text) in text
            for cited in self._one.passages
        ) or any(_plain(sentence) in text for sentence in sentences(self._one.text))


def _pieces(passage: Passage) -> set[str]:
    return set(passage.id.split("+"))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


# -- targets -------------------------------------------------------------------------------------------------


def _renumbered(answer: Step, labels: Mapping[int, int]) -> Step | None:
    """The answer with the labels of now; None where it names one in words that is not among these."""
    assert answer.call is not None
    arguments = dict(answer.call.arguments)
    texts = [answer.thought, *(value for value in arguments.values() if isinstance(value, str))]
    if any(int(label) not in labels for text in texts for label in _IN_WORDS.findall(text)):
        return None

    def renumbered(text: str) -> str:
        return _IN_WORDS.sub(lambda found: f"[{labels[int(found[1])]}]", text)

    said = {name: renumbered(value) if isinstance(value, str) else value for name, value in arguments.items()}
    said["citations"] = [labels[label] for label in arguments["citations"]]
    call = ToolCall(answer.call.name, said)
    return replace(answer, call=call, thought=renumbered(answer.thought), token_ids=(), grounding=None)


_IN_WORDS = re.compile(r"\[(\d{1,3})\]")


def _handing_over(rows: Sequence[TrainingRow], frame: Frame) -> Step | None:
    """How people's runs hand over directly behind a search, in the words of most runs; None where no two agree."""
    refusing = {tool.name for tool in frame.tools if tool.ends == "refused"}
    said: dict[str, Step] = {}
    runs: dict[str, set[str]] = {}
    for row in rows:
        for index, step in row.targets.items():
            before = row.trajectory.steps[:index]
            if step.call is None or step.call.name not in refusing or not before or not _searched(before[-1]):
                continue
            # A thought that the reviewer did not give is no word of people's.
            own = (THOUGHT if frame.thought else "") if "thought" in step.context_parts else step.thought
            words = canonical([step.call.name, dict(step.call.arguments), own])
            if not has_placeholder(words):
                said.setdefault(words, Step(step.call, thought=own, author="correction"))
                runs.setdefault(words, set()).add(row.task)
    most = Counter({words: len(tasks) for words, tasks in runs.items()}).most_common(1)
    if not most or most[0][1] < SAID_BY:
        return None
    return said[most[0][0]]


def _neutral(one: _Cited, frame: Frame) -> Step | None:
    """Handing over with the built-in tool, in words of ours; None where there is none."""
    if not any(_takes_reason(tool) for tool in frame.tools):
        return None
    reason = REASON_CHINESE if is_chinese(one.row.trajectory.task.text) else REASON
    return Step(
        ToolCall("hand_over", {"reason": reason}), thought=THOUGHT if frame.thought else "", author="correction"
    )


def _takes_reason(tool: ToolSpec) -> bool:
    return tool.name == "hand_over" and tool.ends == "refused" and "reason" in tool.parameters.get("properties", {})
