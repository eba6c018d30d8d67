"""The desk's shop: customers, products, orders and returns in one SQLite file, the same on every build.

Customers and products fall into two halves, one for training tickets and one for held-out ones; an order
holds products of its customer's half only. All of it is made up; dates lie around `TODAY`.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

Split = Literal["train", "held_out"]

TODAY = date(2026, 5, 14)
RETURN_DAYS = 30
TRAIN_CUSTOMERS, HELD_OUT_CUSTOMERS = 126, 84

SIZES = ("S", "M", "L", "XL")
CLOTHES: dict[Split, str] = {
    "train": "Alder Jacket,Birch Jacket,Cedar Shirt,Dune Trousers,Elm Gloves,Fern Socks,Gale Parka,"
    "Heath Fleece,Iris Vest,Juniper Shorts,Kestrel Hat,Larch Leggings,Moss Jumper,Nettle Shirt,Oak Trousers",
    "held_out": "Aspen Anorak,Basalt Hoodie,Coral Blouse,Dusk Poncho,Esker Mittens,Flint Cap,Glacier Coat,"
    "Hazel Skirt,Inlet Overalls",
}
GEAR: dict[Split, str] = {
    "train": "Talon Tent,Brook Stove,Ridge Pack,Ember Lamp,Cairn Poles,Drift Mat,Summit Rope,Pebble Mug,"
    "Otter Bottle,"
    "Raven Knife,Slate Compass,Willow Hammock,Falcon Helmet,Marsh Tarp,Copper Kettle,Lynx Harness,Delta Bag,"
    "Bramble Chair,Comet Torch,Wren Pillow,Harbour Cooler",
    "held_out": "Polar Cot,Quarry Axe,Rowan Grill,Sable Filter,Tundra Sled,Umber Blanket,Violet Lantern,"
    "Yarrow Whistle,Zephyr Kite,Atlas Watch,Beacon Radio,Cobalt Flask,Finch Saw,Granite Pan,Orchid Table",
}
SMALL = [
    "Gloves",
    "Socks",
    "Hat",
    "Cap",
    "Mittens",
    "Mug",
    "Bottle",
    "Pillow",
    "Torch",
    "Whistle",
    "Flask",
    "Kite",
]
"""What costs little."""
FIRST_NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dario",
    "Elin",
    "Finn",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Lars",
    "Mina",
    "Nils",
    "Olga",
    "Pavel",
    "Rosa",
    "Sven",
    "Tilda",
    "Umar",
    "Vera",
    "Wim",
    "Yara",
    "Zoe",
]
LAST_NAMES = [
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Engel",
    "Falk",
    "Grant",
    "Holt",
    "Ilves",
    "Jansen",
    "Kowal",
    "Lund",
    "Marsh",
    "Novak",
    "Orban",
    "Petit",
    "Quist",
    "Reed",
    "Sato",
    "Toth",
]
STREETS = ("Canal Street", "Station Road", "Church Lane", "Park Avenue", "Garden Row", "Market Square")
TOWNS = ("Lindau", "Harwick", "Sornes", "Velden", "Corby", "Tarnow")

SCHEMA = """
create table customers (id text primary key, name text not null, email text not null);
create table products (
    sku text primary key, name text not null unique, price integer not null, stock integer not null,
    restock_on text, sized integer not null);
create table orders (
    id text primary key, customer_id text not null references customers, status text not null,
    ordered_on text not null, due_on text not null, delivered_on text, address text not null);
create table order_items (
    order_id text not null references orders, sku text not null references products, size text,
    primary key (order_id, sku));
create table returns (
    id text primary key, order_id text not null references orders, sku text not null, reason text not null,
    status text not null, arrived_on text, paid_on text);
create table outbox (
    id integer primary key, customer_id text not null, order_id text not null, kind text not null);
"""


def build(path: Path, seed: int = 7) -> None:
    """Write the shop's database to `path`, which must not exist yet. The same seed gives the same rows."""
    if path.exists():
        raise FileExistsError(f"{path} is already there; delete it to build the shop anew")
    rng = random.Random(seed)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        products = {split: _products(connection, rng, split) for split in ("train", "held_out")}
        ids = iter(rng.sample(range(20000, 99999), 1200))
        names = rng.sample([(a, b) for a in FIRST_NAMES for b in LAST_NAMES], TRAIN_CUSTOMERS + HELD_OUT_CUSTOMERS)
        for number, (first, last) in enumerate(names):
            customer = f"C{1000 + number}"
            email = f"{first}.{last}@post.example".lower()
            connection.execute("insert into customers values (?, ?, ?)", (customer, f"{first} {last}", email))
            goods = products[split_of(customer)]
            for state in _states(number):
                _order(connection, rng, str(next(ids)), customer, state, goods)


def split_of(customer_id: str) -> Split:
    """The half a customer belongs to."""
    return "train" if int(customer_id[1:]) - 1000 < TRAIN_CUSTOMERS else "held_out"


def spoken(day: date | str) -> str:
    """A date as the desk writes it: `9 May`."""
    day = date.fromisoformat(day) if isinstance(day, str) else day
    return f"{day.day} {day:%B}"


def _products(connection: sqlite3.Connection, rng: random.Random, split: Split) -> list[tuple[str, bool]]:
    goods: list[tuple[str, bool]] = []
    for sized, names in ((True, CLOTHES[split]), (False, GEAR[split])):
        for name in names.split(","):
            first, noun = name.split(" ")
            sku = f"{first[0]}{noun[0]}-{len(goods) + (11 if split == 'train' else 51)}"
            sold_out = rng.random() < 0.35
            price = rng.randint(9, 39) if noun in SMALL else rng.randint(45, 260)
            stock = 0 if sold_out else rng.randint(2, 60)
            restock = TODAY + timedelta(days=rng.randint(5, 40)) if sold_out else None
            row = (sku, name, price, stock, restock and restock.isoformat(), int(sized))
            connection.execute("insert into products values (?, ?, ?, ?, ?, ?)", row)
            goods.append((sku, sized))
    return goods


def _states(number: int) -> list[str]:
    """What a customer's orders are up to, newest first."""
    newest = ("packing", "shipped", "late")[number % 3]
    second = ("shipped", "packing", "open")[number // 3 % 3]
    oldest = ("open", "closed", "returned")[number // 9 % 3]
    extra = ["closed" if oldest != "closed" else "open"] if number % 3 else []
    return [newest, second, oldest, *extra]


def _order(
    connection: sqlite3.Connection,
    rng: random.Random,
    order: str,
    customer: str,
    state: str,
    goods: list[tuple[str, bool]],
) -> None:
    ago = {"packing": (0, 2), "shipped": (3, 5), "late": (14, 22), "open": (6, 28), "closed": (45, 90)}
    low, high = ago.get(state, (29, 40))
    ordered = TODAY - timedelta(days=rng.randint(low, high))
    delivered = ordered + timedelta(days=rng.randint(3, 5)) if state in ("open", "closed", "returned") else None
    due = ordered + timedelta(days=rng.randint(6, 8))
    status = {"packing": "packing", "shipped": "shipped", "late": "shipped"}.get(state, "delivered")
    address = f"{rng.randint(1, 99)} {rng.choice(STREETS)}, {rng.choice(TOWNS)}"
    row = (
        order,
        customer,
        status,
        ordered.isoformat(),
        due.isoformat(),
        delivered and delivered.isoformat(),
        address,
    )
    connection.execute("insert into orders values (?, ?, ?, ?, ?, ?, ?)", row)
    # Half of the orders surely hold a garment, which can be exchanged; about a third hold a second thing.
    items = [rng.choice([item for item in goods if item[1]])] if rng.random() < 0.5 else [rng.choice(goods)]
    if rng.random() < 0.3:
        items.append(rng.choice([item for item in goods if item not in items]))
    for sku, sized in items:
        size = rng.choice(SIZES) if sized else None
        connection.execute("insert into order_items values (?, ?, ?)", (order, sku, size))
    if state == "returned" and delivered is not None:
        _return(connection, rng, order, items[0][0])


def _return(connection: sqlite3.Connection, rng: random.Random, order: str, sku: str) -> None:
    status = rng.choice(("awaited", "arrived", "paid"))
    arrived = TODAY - timedelta(days=rng.randint(1, 4) if status == "arrived" else rng.randint(6, 12))
    paid = arrived + timedelta(days=rng.randint(1, 5) if status == "paid" else 7)
    days = (None, None) if status == "awaited" else (arrived.isoformat(), paid.isoformat())
    reason = rng.choice(("damaged", "wrong_size", "not_needed"))
    connection.execute(
        "insert into returns values (?, ?, ?, ?, ?, ?, ?)", (f"R{order}", order, sku, reason, status, *days)
    )
