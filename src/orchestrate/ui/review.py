"""Rows and answers judged by people: the pages of `orchestrate data review` and `orchestrate review`, within
these."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from orchestrate.errors import UsageError
from orchestrate.service.data import files
from orchestrate.service.evaluation import reviewing
from orchestrate.ui.site import Form, Site, first

if TYPE_CHECKING:
    from orchestrate.service.data.files import Review


def routes(site: Site) -> list[Route]:
    """None in pages for reading only: each of these writes down what is said."""
    return [] if site.read_only else [*_of_rows(site), *_of_answers(site)]


def _of_rows(site: Site) -> list[Route]:
    """A review is begun by a form, as it reads a file, and goes on where any earlier one was left."""
    opened: dict[str, Review] = {}
    lock = threading.Lock()

    def begin(_: Request, form: Form) -> str:
        path = first(form, "path").strip()
        if not path:
            raise UsageError("name the file that is to be reviewed")
        key = hashlib.sha256(path.encode()).hexdigest()[:16]
        with lock:
            opened[key] = files.Review(path)
        return f"/data/review/{key}/"

    def review_of(request: Request) -> Review:
        found = opened.get(request.path_params["key"])
        if found is None:
            raise UsageError(
                "this review is not open any more", fix="open it from the page of its file again"
            )
        return found

    def back(request: Request) -> str:
        base = request.scope.get("root_path", "")
        return f"{base}/data?{urlencode({'path': str(review_of(request).path)})}"

    pages = files.review_routes("/data/review/{key}/", review_of, back)
    return [site.action("/data/review", begin), *pages]


def _of_answers(site: Site) -> list[Route]:
    desks: dict[str, reviewing.Desk] = {}

    def begin(request: Request, _: Form) -> str:
        desk = reviewing.opened(site.ft, [site.ft.run(request.path_params["run"]).id])
        return f"/reviews/{desk.review.id}/"

    def desk_of(request: Request) -> reviewing.Desk:
        name = request.path_params["review"]
        if name not in desks:
            if not name.startswith("rev-"):
                raise HTTPException(404, f"there is no review {name}")
            desks[name] = reviewing.opened(site.ft, [name])
        return desks[name]

    def back(request: Request) -> str:
        runs = desk_of(request).review.run_ids
        return f"{request.scope.get('root_path', '')}/" + (f"runs/{runs[0]}" if runs else "")

    pages = reviewing.review_routes("/reviews/{review}/", desk_of, back)
    return [site.action("/runs/{run}/review", begin), *pages]
