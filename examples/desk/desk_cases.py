"""One ticket per intent: its text, its check and its solution, over the shop's database.

`Cases.make` fills a phrasing for a customer whose order is in the situation asked for. Calls of the solution
are really made on a fresh copy of the shop, so that answers copy what the tools say; the check is computed
from the rows before any call.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from langchain_core.tools import ToolException

from tools.context import ToolContext

HERE = Path(__file__).parent
STREETS = {
    "train": ("Mill Lane", "Oak Road", "Hill Street", "Dock Road"),
    "held_out": ("Rose Street", "Lake Road", "Bell Lane"),
}
TOWNS = {
    "train": ("Bergen", "Leeds", "Graz", "Ghent", "Turku"),
    "held_out": ("Malmo", "York", "Linz", "Bruges"),
}
DOMAINS = {
    "train": ("north.example", "inbox.example", "mailbox.example"),
    "held_out": ("harbour.example", "letter.example"),
}
OTHERS = "The order belongs to another customer."


class Script:
    """A solution being written: every call is made on a fresh shop, and errors are noted."""

    def __init__(self, desk: Any, plan: list[str]) -> None:
        self.desk, self.plan, self.steps, self.failed = desk, plan, list[dict[str, Any]](), False

    def call(self, thought: str, tool: str, **args: str) -> str:
        self._step(thought, tool, args)
        try:
            return str(getattr(self.desk, tool)(**args))
        except ToolException as refusal:
            self.failed = True
            return str(refusal)

    def answer(self, text: str, *, thought: str = "", cite: str = "") -> None:
        thought = thought or ("The tool says why not." if self.failed else "I have the fact.")
        citations: str | list[int] = f"{{cite:{cite}}}" if cite else []
        self._step(thought, "answer", {"text": text, "citations": citations}, again=["answer"])

    def search(self, query: str) -> None:
        self._step("The articles may say.", "search_knowledge", {"query": query})

    def hand_over(self, thought: str, reason: str) -> None:
        self._step(thought, "hand_over", {"reason": reason}, again=["hand over"])

    def _step(self, thought: str, tool: str, args: dict[str, Any], again: list[str] | None = None) -> None:
        plan = {"plan": self.plan} if not self.steps else {"plan": again} if self.failed else {}
        self.steps.append({**plan, "thought": thought, "tool": tool, "args": args})


class Cases:
    """Makes tickets of one split."""

    def __init__(self, split: str, rng: random.Random, folder: Path, whys: dict[str, Any], asks: list[Any]) -> None:
        self._split, self._rng, self._whys, self._asks = split, rng, whys, asks
        self._database, self._tools = _sibling("desk_database"), _sibling("desk_tools")
        self._project, self._workspace = folder / "project", folder / "workspace"
        self._project.mkdir()
        self._database.build(self._project / "shop.db")
        self._book = _sibling("desk_book").Book(split, rng, self._project / "shop.db", self._database)

    def make(self, phrasing: Any, turn: int) -> dict[str, Any]:
        """`task`, `tools`, `check` and `solution` of one ticket; `turn` picks among situations."""
        slots: dict[str, str] = {}
        customer, check, script = getattr(self, f"_{phrasing.intent}")(phrasing, turn, slots)
        if "product" in slots:
            slots["product_l"] = slots["product"].lower()
        text = plain(phrasing.template).format_map(slots)
        facts = {"customer_id": customer, "today": self._database.TODAY.isoformat()}
        check = {**check, "refusal": check.get("refusal", False)}
        return {
            "task": {"text": text, "facts": facts},
            "tools": None,
            "check": check,
            "solution": script.steps,
        }

    # Look-ups

    def _track(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "shipped", "late")[turn % 3], slots)
        script = self._script(order.customer, "track the parcel", "answer")
        script.answer(script.call("They ask where the order is.", "track_parcel", order_id=order.id))
        return order.customer, self._tracked(order), script

    def _total(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "open", "closed", "shipped")[turn % 4], slots)
        script = self._script(order.customer, "get the order", "answer")
        script.call("They ask what the order cost.", "get_order", order_id=order.id)
        script.answer(f"Order {order.id} cost {order.total} euros.")
        return (
            order.customer,
            {**_called("get_order", order_id=order.id), "must": [_euros(order.total)]},
            script,
        )

    def _stock(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        rows = self._book.query("select name, stock, restock_on from products order by sku")
        mine = {
            name for group in (self._database.CLOTHES, self._database.GEAR) for name in group[self._split].split(",")
        }
        name, stock, restock = self._book.deal("stock", [row for row in rows if row[0] in mine])
        slots["product"], customer = name, self._book.customer()
        script = self._script(customer, "check the stock", "answer")
        said = slots["product"].lower() if "{product_l}" in phrasing.template else slots["product"]
        script.answer(script.call("They ask about stock.", "check_stock", product=said))
        must: list[Any] = [name, "in stock"]
        if not stock:
            must = [
                name,
                ["sold out", "out of stock", "not in stock"],
                self._day(date.fromisoformat(restock)),
            ]
        return (
            customer,
            {**_called("check_stock", product=name), "must": must, "must_not": ["sold out"] if stock else []},
            script,
        )

    # Changes

    def _cancel(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "packing", "shipped")[turn % 3], slots)
        script = self._script(order.customer, "cancel the order", "answer")
        self._finish(script, script.call("They want it cancelled.", "cancel_order", order_id=order.id))
        return order.customer, self._cancelled(order), script

    def _address(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "packing", "shipped")[turn % 3], slots)
        street, town = self._rng.choice(STREETS[self._split]), self._rng.choice(TOWNS[self._split])
        address = slots["address"] = f"{self._rng.randint(2, 89)} {street}, {town}"
        script = self._script(order.customer, "change the address", "answer")
        said = script.call("They want another address.", "change_address", order_id=order.id, address=address)
        self._finish(script, said)
        query = f"select address from orders where id = '{order.id}'"
        if order.kind != "packing":
            return order.customer, {**_state(query, self._book.query(query)[0][0]), "must": _SHIPPED}, script
        done = {**_called("change_address", order_id=order.id), **_state(query, address)}
        return order.customer, {**done, "must": [address]}, script

    def _email(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        customer = self._book.customer()
        first, last = self._book.query(f"select name from customers where id = '{customer}'")[0][0].lower().split(" ")
        name = self._rng.choice((f"{first}.{last}", f"{first}{last[0]}", f"{last}.{first}", f"{first}"))
        email = slots["email"] = f"{name}@{self._rng.choice(DOMAINS[self._split])}"
        script = self._script(customer, "change the email", "answer")
        self._finish(script, script.call("They want another email.", "update_email", email=email))
        state = _state(f"select email from customers where id = '{customer}'", email)
        return customer, {**_called("update_email", email=email), **state, "must": [email]}, script

    def _invoice(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "shipped", "open", "closed")[turn % 4], slots)
        script = self._script(order.customer, "send the invoice", "answer")
        self._finish(script, script.call("They want the invoice.", "send_invoice", order_id=order.id))
        query = f"select count(*) from outbox where order_id = '{order.id}' and kind = 'invoice'"
        done = {**_called("send_invoice", order_id=order.id), **_state(query, 1)}
        return order.customer, {**done, "must": [["sent", "emailed"]]}, script

    # Returns and refunds

    def _return_deadline(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("open", "open", "closed")[turn % 3], slots)
        script = self._script(order.customer, "get the order", "answer")
        script.call("They ask about the return window.", "get_order", order_id=order.id)
        day = self._database.spoken(order.last_day)
        script.answer(f"Its return window {'is open until' if order.kind == 'open' else 'closed on'} {day}.")
        must = [self._day(order.last_day)] + ([["closed", "over", "too late"]] if order.kind == "closed" else [])
        return order.customer, {**_called("get_order", order_id=order.id), "must": must}, script

    def _return(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("open", "open", "closed")[turn % 3], slots)
        item = self._rng.choice(order.items)
        reason = ("damaged", "wrong_size", "not_needed")[turn // 3 % 3 if item.size else turn // 3 % 2 * 2]
        slots["product"], slots["why"] = (
            item.name,
            self._book.deal(f"why {reason}", self._whys[reason][self._split]),
        )
        script = self._script(order.customer, "get the order", "start the return", "answer")
        script.call("I need the sku.", "get_order", order_id=order.id)
        said = script.call(
            f"The {item.name} is {item.sku}.", "start_return", order_id=order.id, sku=item.sku, reason=reason
        )
        self._finish(script, said)
        if order.kind == "closed":
            state = _state(f"select count(*) from returns where order_id = '{order.id}'", 0)
            return order.customer, {**state, "must": [self._day(order.last_day)]}, script
        state = _state(f"select reason from returns where order_id = '{order.id}' and sku = '{item.sku}'", reason)
        done = {**_called("start_return", order_id=order.id, sku=item.sku), **state}
        return order.customer, {**done, "must": [self._day(order.last_day)]}, script

    def _exchange(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("open", "open", "closed")[turn % 3], slots, sized=True)
        item = self._rng.choice([item for item in order.items if item.size])
        size = self._rng.choice([size for size in self._database.SIZES if size != item.size])
        slots["product"], slots["size"] = item.name, size
        script = self._script(order.customer, "get the order", "exchange the item", "answer")
        script.call("I need the sku.", "get_order", order_id=order.id)
        said = script.call(
            f"The {item.name} is {item.sku}.", "exchange_item", order_id=order.id, sku=item.sku, size=size
        )
        self._finish(script, said)
        query = f"select size from order_items where order_id = '{order.id}' and sku = '{item.sku}'"
        if order.kind == "closed":
            return order.customer, {**_state(query, item.size), "must": [self._day(order.last_day)]}, script
        done = {**_called("exchange_item", order_id=order.id, sku=item.sku, size=size), **_state(query, size)}
        return order.customer, {**done, "must": [["exchanged", "exchange"], f"size {size}"]}, script

    def _refund_lost(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("late", "late", "shipped")[turn % 3], slots)
        script = self._script(order.customer, "refund the order", "answer")
        self._finish(script, script.call("The parcel did not come.", "refund_order", order_id=order.id))
        query = f"select status from orders where id = '{order.id}'"
        if order.kind == "shipped":
            return order.customer, {**_state(query, "shipped"), "must": [self._day(order.due)]}, script
        done = {**_called("refund_order", order_id=order.id), **_state(query, "refunded")}
        return order.customer, {**done, "must": [_euros(order.total)]}, script

    def _refund_status(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order("returned", slots)
        script = self._script(order.customer, "look up the return", "answer")
        script.answer(script.call("They ask about a return.", "return_status", order_id=order.id))
        status, paid = self._book.query(f"select status, paid_on from returns where order_id = '{order.id}'")[0]
        must = [["not arrived", "not yet arrived"]] if status == "awaited" else [self._day(date.fromisoformat(paid))]
        return order.customer, {**_called("return_status", order_id=order.id), "must": must}, script

    # Policy and several steps

    def _policy(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        customer, ask = self._book.customer(), phrasing.ask
        script = self._script(customer, "search the articles", "answer")
        script.search(bracketed(phrasing.template))
        script.answer(first_sentence(ask), thought="The passage says it.", cite=f"{ask['article']}.md")
        return customer, {**_called("search_knowledge"), **_asked(ask)}, script

    def _cancel_and_ask(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order, question = self._book.order("packing", slots), self._book.deal("asks", self._asks)
        ask, slots["question"] = question.ask, plain(question.template)
        script = self._script(order.customer, "cancel the order", "search the articles", "answer")
        said = script.call("They want it cancelled.", "cancel_order", order_id=order.id)
        script.search(bracketed(question.template))
        script.answer(f"{said} {first_sentence(ask)}", thought="The passage says it.", cite=f"{ask['article']}.md")
        check = self._cancelled(order)
        return order.customer, {**check, **_asked(ask), "must": [*check["must"], *ask["must"]]}, script

    def _track_latest(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "shipped")[turn % 2], slots, newest=True)
        script = self._script(order.customer, "list the orders", "track the newest", "answer")
        script.call("I need the order number.", "list_orders")
        script.answer(script.call(f"The newest order is {order.id}.", "track_parcel", order_id=order.id))
        return order.customer, self._tracked(order), script

    def _cancel_product(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        order = self._book.order(("packing", "packing", "shipped")[turn % 3], slots, listed=True)
        product = slots["product"] = self._rng.choice(self._book.own_names(order))
        script = self._script(order.customer, "list the orders", "cancel the order", "answer")
        script.call("I need the order number.", "list_orders")
        said = script.call(f"The {product} is {order.id}.", "cancel_order", order_id=order.id)
        self._finish(script, said)
        return order.customer, self._cancelled(order), script

    # Refusals

    def _other_track(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        return self._others(slots, "track the parcel", "They ask where the order is.", "track_parcel")

    def _other_cancel(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        return self._others(slots, "cancel the order", "They want it cancelled.", "cancel_order")

    def _other_invoice(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        return self._others(slots, "send the invoice", "They want the invoice.", "send_invoice")

    def _exception(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        return self._at_once(slots, "They want special terms.", "The customer asks for special terms.")

    def _off_task(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        return self._at_once(slots, "This is no task of the desk.", "This is no task of the desk.")

    def _unanswerable(self, phrasing: Any, turn: int, slots: dict[str, str]) -> Any:
        customer = self._book.customer()
        script = self._script(customer, "search the articles", "answer")
        script.search(bracketed(phrasing.template))
        script.hand_over("No passage says it.", "The articles do not say.")
        return customer, {"refusal": True}, script

    def _others(self, slots: dict[str, str], plan: str, thought: str, tool: str) -> Any:
        order = self._book.order(self._rng.choice(("packing", "shipped")), slots)
        customer = self._book.customer(but=order.customer)
        script = self._script(customer, plan, "answer")
        script.call(thought, tool, order_id=order.id)
        script.hand_over("It belongs to another customer.", OTHERS)
        state = _state(f"select status from orders where id = '{order.id}'", order.status)
        return customer, {**state, "refusal": True}, script

    def _at_once(self, slots: dict[str, str], thought: str, reason: str) -> Any:
        order = self._book.order("closed", slots)
        slots["product"] = order.items[0].name
        script = self._script(order.customer, "hand over")
        script.hand_over(thought, reason)
        return order.customer, {"refusal": True}, script

    # Helpers

    def _script(self, customer: str, *plan: str) -> Script:
        (self._workspace / "shop.db").unlink(missing_ok=True)
        facts = {"customer_id": customer, "today": self._database.TODAY.isoformat()}
        context = ToolContext(workspace=self._workspace, project=self._project, facts=facts)
        return Script(self._tools.Desk(context), list(plan))

    def _finish(self, script: Script, said: str) -> None:
        script.answer(said, thought="" if script.failed else "It is done.")

    def _tracked(self, order: Any) -> dict[str, Any]:
        late = [["late", "overdue", "was due"]] if order.kind == "late" else []
        return {**_called("track_parcel", order_id=order.id), "must": [self._day(order.due), *late]}

    def _cancelled(self, order: Any) -> dict[str, Any]:
        query = f"select status from orders where id = '{order.id}'"
        if order.kind != "packing":
            return {**_state(query, order.status), "must": _SHIPPED}
        done = {**_called("cancel_order", order_id=order.id), **_state(query, "cancelled")}
        return {**done, "must": [["cancelled", "canceled"]]}

    def _day(self, day: date | None) -> list[str]:
        """Ways to write a date."""
        spoken = str(self._database.spoken(day))
        number, month = spoken.split(" ")
        return [spoken, f"{month} {number}"]


_SHIPPED: list[Any] = ["shipped", ["cannot", "can't", "can not", "could not", "not possible"]]


def plain(template: str) -> str:
    """A phrasing as the customer writes it, without the brackets."""
    return re.sub(r"[\[\]]", "", template)


def bracketed(template: str) -> str:
    """The words of a phrasing to search for."""
    found = re.search(r"\[(.+?)\]", template)
    if found is None:
        raise ValueError(f"{template!r} names no words to search for; put them in brackets")
    return found[1]


def first_sentence(ask: dict[str, Any]) -> str:
    """The sentence of the article that answers: the first of the section."""
    path = HERE / "articles" / f"{ask['article']}.md"
    _, found, section = path.read_text(encoding="utf-8").partition(f"\n## {ask['heading']}\n")
    if not found:
        raise ValueError(f"{path} has no heading {ask['heading']!r}")
    return re.split(r"(?<=[.])\s", section.strip())[0]


def _called(tool: str, **args: str) -> dict[str, Any]:
    return {"calls": [{"tool": tool, "args": args}]}


def _state(query: str, value: Any) -> dict[str, Any]:
    return {"state": [{"database": "shop.db", "query": query, "equals": [[value]]}]}


def _asked(ask: dict[str, Any]) -> dict[str, Any]:
    return {"must": ask["must"], "cites": [f"{ask['article']}.md"]}


def _euros(amount: int) -> list[str]:
    return [f"{amount} euro", f"€{amount}", f"{amount} €", f"{amount} EUR"]


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{HERE / name}.py cannot be loaded; the desk needs it beside desk_cases.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module
