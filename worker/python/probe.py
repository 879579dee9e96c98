# Tells what an interpreter is, and which requirements its packages satisfy.
#
# Reads JSON from standard input: marker, a line to put before the answer, since
# packages may print when Python starts; requirements; and urls, whether a
# package that came from a URL has to come from that one. Python 2 and early
# versions of 3 parse this file, too, so that their version can be told.
import sys

if sys.path and sys.path[0] == "":  # where this runs does not count
    del sys.path[0]

import json
import os


def main():
    question = json.loads(sys.stdin.read())
    answer = {"version": "%d.%d.%d" % sys.version_info[:3], "new": sys.version_info >= (3, 9)}
    if answer["new"]:
        answer.update(look(question))
    sys.stdout.write("\n" + question["marker"] + json.dumps(answer) + "\n")
    sys.stdout.flush()


def look(question):
    import importlib.util
    import site
    dists = distributions()
    sites = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        sites.insert(0, site.getusersitepackages())
    answer = {
        "platform": platform(),
        "sites": [s for s in sites if s in sys.path],
        "distributions": {name: version for name, (version, _) in dists.items()},
        "paths": {name: path for name, (_, path) in dists.items()},
        "required": [], "present": [], "missing": [], "unfit": [], "judged": True,
    }
    for module in ("pip", "ensurepip", "venv"):
        answer[module] = importlib.util.find_spec(module) is not None
    requirements = packaging("requirements")
    answer["judged"] = requirements is not None
    for text in question["requirements"]:
        if requirements is None:
            applies, there = guess(text, dists)
        else:
            try:
                requirement = requirements.Requirement(text)
            except Exception as e:
                answer["invalid"] = "%s: %s" % (text, e)
                return answer
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            there = applies and satisfied(requirement, requirements.Requirement, dists, question["urls"], set(), answer["unfit"])
        if applies:
            answer["required"].append(text)
            answer["present" if there else "missing"].append(text)
    return answer


def packaging(module):
    """Returns a module of packaging, from wherever there is one."""
    import importlib
    for parent in ("packaging", "pip._vendor.packaging", "setuptools._vendor.packaging", "setuptools.extern.packaging"):
        try:
            return importlib.import_module(parent + "." + module)
        except Exception:
            pass
    return None


def normalise(name):
    import re
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions():
    """Returns version and path of what is installed, by normalised name."""
    import re
    found = {}
    for entry in sys.path:
        try:
            names = sorted(os.listdir(entry))
        except OSError:
            continue
        for file in names:
            stem, extension = os.path.splitext(file)
            if extension not in (".dist-info", ".egg-info"):
                continue
            path = os.path.join(entry, file)
            if extension == ".dist-info":
                # Without metadata it is what an interrupted uninstallation has left.
                if not os.path.isfile(os.path.join(path, "METADATA")):
                    continue
            else:
                stem = re.sub(r"-py\d[\d.]*$", "", stem)
            name, dash, version = stem.rpartition("-")
            if not dash:
                name, version = stem, metadata(path).get("Version") or ""
            if re.match(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", name):
                found.setdefault(normalise(name), (version, path))
    return found


def metadata(path):
    import email
    for file in ("METADATA", "PKG-INFO", ""):
        try:
            with open(os.path.join(path, file) if file else path, encoding="utf-8", errors="replace") as f:
                return email.message_from_file(f)
        except OSError:
            pass
    return email.message_from_string("")


def satisfied(requirement, parse, dists, urls, seen, unfit):
    """Reports whether a requirement is satisfied, with its extras.

    unfit gets the names of packages that are there, but not as required.
    """
    name = normalise(requirement.name)
    if name not in dists:
        return False
    version, path = dists[name]
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except Exception:  # a version from before there were rules
        fits = False
    if not fits or requirement.url and urls and origin(path) != requirement.url:
        unfit.append(name)
        return False
    if not requirement.extras or (name, frozenset(requirement.extras)) in seen:
        return True
    seen.add((name, frozenset(requirement.extras)))
    fields = metadata(path)
    # An extra that the package does not have counts as empty, as it does for pip.
    for text in fields.get_all("Requires-Dist") or []:
        try:
            inner = parse(text)
        except Exception:
            continue
        if inner.marker is None or inner.marker.evaluate({"extra": ""}):
            continue
        if any(inner.marker.evaluate({"extra": e}) for e in requirement.extras):
            if not satisfied(inner, parse, dists, urls, seen, unfit):
                return False
    return True


def origin(path):
    """Returns the URL that a package was installed from."""
    try:
        with open(os.path.join(path, "direct_url.json"), encoding="utf-8") as f:
            direct = json.load(f)
        vcs = direct.get("vcs_info")
        if not vcs:
            return direct.get("url")
        revision = vcs.get("requested_revision")
        return vcs["vcs"] + "+" + direct["url"] + ("@" + revision if revision else "")
    except Exception:
        return None


def guess(text, dists):
    """Judges a requirement without packaging: a name, or one version of it."""
    import re
    match = re.match(r"([a-z0-9-]+)(?:==([0-9][0-9A-Za-z.]*))?$", text)
    if not match:
        return True, False
    there = dists.get(match.group(1))
    return True, there is not None and match.group(2) in (None, there[0])


def platform():
    """Returns which wheels fit, as the most special of their tags says it."""
    import struct
    import sysconfig
    short = {"cpython": "cp", "pypy": "pp"}.get(sys.implementation.name, sys.implementation.name)
    free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    where = sysconfig.get_platform()
    if where.startswith("linux-"):
        machine = where[len("linux-"):]
        if struct.calcsize("P") == 4:
            machine = {"x86_64": "i686", "aarch64": "armv8l"}.get(machine, machine)
        try:
            version = os.confstr("CS_GNU_LIBC_VERSION").split()[1]
            where = "manylinux_%s_%s" % ("_".join(version.split(".")[:2]), machine)
        except (AttributeError, ValueError, OSError):
            where = "musllinux_" + machine
    return "%s%d%d%s-%s" % (short, sys.version_info[0], sys.version_info[1], free, where.replace("-", "_").replace(".", "_"))


main()
