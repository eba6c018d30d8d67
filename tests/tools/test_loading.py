from __future__ import annotations

import importlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.other_user import OTHER, as_root
from tools.context import ToolContext
from tools.errors import ToolsLoadError
from tools.loading import load_tools

BUILT_IN = ["search_knowledge", "calculator", "answer", "hand_over"]
TOOL = """
from langchain_core.tools import tool
{head}

@tool
def {name}() -> str:
    "Say it."
    return {value}

def load_tools(context):
    return [{name}]
"""


def project(
    folder: Path, *, name: str = "say", value: str = "'hi'", head: str = "", file: str = "shop.py"
) -> ToolContext:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(TOOL.format(name=name, value=value, head=head))
    return ToolContext(folder / "work", folder)


def test_without_files_there_are_the_built_in_tools(tmp_path: Path) -> None:
    assert [tool.name for tool in load_tools([], ToolContext(tmp_path, tmp_path))] == BUILT_IN


def test_a_file_of_the_project_adds_its_tools(tmp_path: Path) -> None:
    tools = load_tools(["shop.py"], project(tmp_path / "a"))
    assert [tool.name for tool in tools] == [*BUILT_IN, "say"]
    assert tools[-1].invoke({}) == "hi"


def test_two_projects_with_the_same_names_do_not_clash(tmp_path: Path) -> None:
    contexts = []
    for name in ("one", "two"):
        contexts.append(
            project(tmp_path / name, head="import helper\nfrom .near import NEAR", value="helper.WHO + NEAR")
        )
        (tmp_path / name / "helper.py").write_text(f"WHO = {name!r}")
        (tmp_path / name / "near.py").write_text(f"NEAR = {name[0]!r}")
    path = list(sys.path)
    assert [load_tools(["shop.py"], context)[-1].invoke({}) for context in contexts] == ["oneo", "twot"]
    assert [load_tools(["shop.py"], context)[-1].invoke({}) for context in contexts] == ["oneo", "twot"]
    assert "helper" not in sys.modules
    assert sys.path == path


def test_a_file_named_tools_may_import_the_tools_package(tmp_path: Path) -> None:
    context = project(tmp_path / "a", head="from tools.context import ToolContext", file="tools.py")
    assert load_tools(["tools.py"], context)[-1].name == "say"
    assert sys.modules["tools.context"].ToolContext is ToolContext


def test_a_changed_file_is_loaded_anew(tmp_path: Path) -> None:
    load_tools(["shop.py"], project(tmp_path / "a"))
    context = project(tmp_path / "a", value="'something else'")
    assert load_tools(["shop.py"], context)[-1].invoke({}) == "something else"


def test_a_module_may_have_a_list_of_tools(tmp_path: Path) -> None:
    context = project(tmp_path / "a", file="dotted_shop_tools.py")
    file = tmp_path / "a" / "dotted_shop_tools.py"
    file.write_text(file.read_text().partition("def load_tools")[0] + "TOOLS = [say]\n")
    try:
        assert load_tools(["dotted_shop_tools"], context)[-1].name == "say"
    finally:
        sys.modules.pop("dotted_shop_tools", None)


def test_enabled_leaves_the_named_tools_and_those_that_end_a_run(tmp_path: Path) -> None:
    context = project(tmp_path / "a")
    assert [tool.name for tool in load_tools(["shop.py"], context, enabled=["say"])] == [
        "answer",
        "hand_over",
        "say",
    ]
    with pytest.raises(ToolsLoadError, match="no tool is named 'sya'; there are search_knowledge"):
        load_tools(["shop.py"], context, enabled=["sya"])


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolsLoadError, match="'answer' is taken by the built-in tools"):
        load_tools(["shop.py"], project(tmp_path / "a", name="answer"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_thing_here\n", r"shop\.py, line 2: ModuleNotFoundError: No module named"),
        ("def load_tools(:\n", r"shop\.py, line 1: SyntaxError"),
        ("def load_tools(context):\n    return 1 / 0\n", r"shop\.py, line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", r"shop\.py, line 2: SystemExit: 3"),
        ("x = 1\n", r"neither load_tools nor TOOLS is there; define load_tools"),
        ("def load_tools(context):\n    return None\n", "load_tools returned NoneType"),
        (
            "TOOLS = [print]\n",
            "found <built-in function print>, expected a function with a docstring, or a langchain-core tool",
        ),
    ],
)
def test_the_error_of_a_broken_file_names_file_line_and_cause(tmp_path: Path, text: str, message: str) -> None:
    context = project(tmp_path / "a")
    (tmp_path / "a" / "shop.py").write_text(text)
    with pytest.raises(ToolsLoadError, match=message):
        load_tools(["shop.py"], context)


def test_a_missing_file_or_module_and_an_unknown_effect_are_refused(tmp_path: Path) -> None:
    context = project(tmp_path / "a")
    with pytest.raises(ToolsLoadError, match=r"nothing\.py: the file does not exist"):
        load_tools(["nothing.py"], context)
    with pytest.raises(ToolsLoadError, match="No module named 'no_such_module_here'"):
        load_tools(["no_such_module_here"], context)
    file = tmp_path / "a" / "shop.py"
    file.write_text(file.read_text().replace("return [say]", "say.metadata = {'effect': 'magic'}\n    return [say]"))
    with pytest.raises(ToolsLoadError, match="say has effect 'magic', expected one of read, workspace, world"):
        load_tools(["shop.py"], context)


@pytest.mark.parametrize(("mark", "how"), [("'copied': ['id']", "copied"), ("'quoted': 'id'", "quoted")])
def test_a_mark_on_what_is_not_a_text_argument_is_refused(tmp_path: Path, mark: str, how: str) -> None:
    context = project(tmp_path / "a")
    file = tmp_path / "a" / "shop.py"
    file.write_text(file.read_text().replace("return [say]", f"say.metadata = {{{mark}}}\n    return [say]"))
    with pytest.raises(
        ToolsLoadError, match=f"say marks argument 'id' as {how}, but has no text argument of that name"
    ):
        load_tools(["shop.py"], context)


def test_queries_are_copied_where_the_project_wants_that(tmp_path: Path) -> None:
    search = load_tools(["shop.py"], project(tmp_path / "a"), copied_queries=True)[0]
    assert search.metadata == {"effect": "read", "copied": ["query"]}


def test_answers_are_quoted_where_the_project_wants_that(tmp_path: Path) -> None:
    tools = load_tools(["shop.py"], project(tmp_path / "a"), quoted_answers=True)
    assert [tool.name for tool in tools if "quoted" in (tool.metadata or {})] == ["answer"]


def test_tools_that_others_could_have_written_are_not_run(tmp_path: Path) -> None:
    head = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()"
    context = project(tmp_path / "a", head=head)
    (tmp_path / "a" / "shop.py").chmod(0o666)
    with pytest.raises(ToolsLoadError, match=r"tools of shop\.py: .*everybody may write to it.*RATCHET_TRUST="):
        load_tools(["shop.py"], context)
    (tmp_path / "a" / "shop.py").chmod(0o644)
    (tmp_path / "a").chmod(0o777)
    for name in ("shop.py", "shop"):
        with pytest.raises(ToolsLoadError, match="everybody may write to it"):
            load_tools([name], context)
    assert not (tmp_path / "ran").exists()
    assert load_tools(["shop.py"], context, trusted=[tmp_path / "a"])[-1].name == "say"


@as_root
def test_a_tools_file_of_another_user_is_not_run_by_its_own_name_or_another(tmp_path: Path) -> None:
    context = project(tmp_path / "a")
    (tmp_path / "a" / "named.py").symlink_to("shop.py")
    os.chown(tmp_path / "a" / "shop.py", OTHER, -1)
    for name in ("shop.py", "named.py", tmp_path / "a" / "shop.py"):
        with pytest.raises(ToolsLoadError, match=r"it belongs to .*uid 65534"):
            load_tools([name], context)


def test_an_import_inside_a_function_finds_the_helper_beside_the_file(tmp_path: Path) -> None:
    context = project(
        tmp_path / "a",
        value="late()",
        head="def late():\n    import late\n    from kit import part\n    return late.WORD + part.WORD",
    )
    (tmp_path / "a" / "late.py").write_text("import nested\nWORD = nested.WORD")
    (tmp_path / "a" / "nested.py").write_text("WORD = 'x'")
    (tmp_path / "a" / "kit").mkdir()
    (tmp_path / "a" / "kit" / "__init__.py").write_text("")
    (tmp_path / "a" / "kit" / "part.py").write_text("WORD = 'y'")
    assert load_tools(["shop.py"], context)[-1].invoke({}) == "xy"
    assert not {"late", "nested", "kit"} & sys.modules.keys()


def test_a_changed_helper_is_loaded_anew_and_an_unchanged_file_runs_once(tmp_path: Path) -> None:
    head = "import helper\nwith open(__file__ + '.log', 'a') as log:\n    log.write('x')"
    context = project(tmp_path / "a", head=head, value="helper.WORD")
    (tmp_path / "a" / "helper.py").write_text("WORD = 'first'")
    assert [load_tools(["shop.py"], context)[-1].invoke({}) for _ in range(3)] == ["first"] * 3
    (tmp_path / "a" / "helper.py").write_text("WORD = 'the second'")
    assert [load_tools(["shop.py"], context)[-1].invoke({}) for _ in range(3)] == ["the second"] * 3
    assert (tmp_path / "a" / "shop.py.log").read_text() == "xx"


def test_tools_of_several_projects_are_loaded_from_many_threads_at_once(tmp_path: Path) -> None:
    contexts = []
    for number in range(8):
        contexts.append(project(tmp_path / str(number), head="import helper, json", value="helper.WHO"))
        (tmp_path / str(number) / "helper.py").write_text(f"WHO = '{number}'")
    ended = threading.Event()

    def import_modules() -> None:
        while not ended.is_set():
            for name in ("xml.dom.minidom", "wave", "colorsys", "this_is_no_module"):
                sys.modules.pop(name, None)
                with suppress(ImportError):
                    importlib.import_module(name)

    importing = threading.Thread(target=import_modules)
    importing.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            words = list(pool.map(lambda one: load_tools(["shop.py"], one)[-1].invoke({}), contexts * 20))
    finally:
        ended.set()
        importing.join()
    assert words == [str(number) for number in range(8)] * 20


@pytest.mark.parametrize("code", ["from tools import helper", "import tools.helper", "import tools\ntools.helper"])
def test_a_folder_of_ones_own_that_our_package_hides_is_named(tmp_path: Path, code: str) -> None:
    context = project(tmp_path / "a")
    (tmp_path / "a" / "tools").mkdir()
    (tmp_path / "a" / "tools" / "helper.py").write_text("")
    (tmp_path / "a" / "shop.py").write_text(f"{code}\nTOOLS = []\n")
    with pytest.raises(
        ToolsLoadError, match=r"`tools` is the package of Ratchet in .*, which hides .*/a/tools; rename"
    ):
        load_tools(["shop.py"], context)


def test_a_package_of_ours_is_no_module_of_tools(tmp_path: Path) -> None:
    with pytest.raises(ToolsLoadError, match=r"'tools' is a package of Ratchet; for a file of yours write 'tools\.py'"):
        load_tools(["tools"], project(tmp_path / "a"))
