package python

import (
	"archive/zip"
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// stubBuild is the build number of stubs, by which they are known, and preferred
// to the package itself.
const stubBuild = "999999osiris"

// maxHead is how much of the metadata of a package is read.
const maxHead = 256 << 10

// describeBase tells pip and uv what the base has. stubs is a directory of
// wheels that have the metadata of its packages and nothing else: they are there
// to choose from, also where no index has them, and are never installed.
// constraints is a file that asks for their versions, but for those that do not
// fit what is required; empty: there are none.
func (n *installation) describeBase() (stubs, constraints string, err error) {
	stubs = filepath.Join(n.tmp, "base")
	if err := os.Mkdir(stubs, 0o700); err != nil {
		return "", "", err
	}
	version := regexp.MustCompile(`^(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?$`)
	// The first of the tags that fit counts most.
	tag := "py3-none-any"
	if interpreter, platform, ok := strings.Cut(n.base.Platform, "-"); ok && strings.HasPrefix(platform, "manylinux_") {
		tag = interpreter + "-" + interpreter + "-" + platform
	}
	free := slices.Clone(n.base.Unfit)
	for _, r := range n.requirements {
		if r.url != "" {
			free = append(free, r.name)
		}
	}
	var wanted strings.Builder
	for _, name := range sortedNames(n.base.Distributions) {
		v := n.base.Distributions[name]
		head, err := metadataHead(n.base.Paths[name])
		if err != nil || !version.MatchString(v) || !slices.Contains(head, "Version: "+v) {
			continue // pip and uv would not take it
		}
		if err := writeStub(stubs, strings.ReplaceAll(name, "-", "_"), v, tag, head); err != nil {
			return "", "", err
		}
		if !slices.Contains(free, name) {
			fmt.Fprintf(&wanted, "%s==%s\n", name, v)
		}
	}
	if wanted.Len() == 0 {
		return stubs, "", nil
	}
	constraints = filepath.Join(n.tmp, "constraints.txt")
	return stubs, constraints, os.WriteFile(constraints, []byte(wanted.String()), 0o600)
}

// metadataHead returns the fields of a package's metadata, without its
// description.
func metadataHead(path string) (head []string, err error) {
	f, err := os.Open(filepath.Join(path, "METADATA"))
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(filepath.Join(path, "PKG-INFO"))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxHead))
	s.Buffer(nil, maxHead)
	for s.Scan() && s.Text() != "" {
		head = append(head, s.Text())
	}
	return head, s.Err()
}

func writeStub(dir, name, version, tag string, head []string) error {
	f, err := os.Create(filepath.Join(dir, name+"-"+version+"-"+stubBuild+"-"+tag+".whl"))
	if err != nil {
		return err
	}
	z := zip.NewWriter(f)
	info := name + "-" + version + ".dist-info/"
	for _, file := range [][2]string{
		{"METADATA", strings.Join(head, "\n") + "\n"},
		{"WHEEL", "Wheel-Version: 1.0\nGenerator: osiris\nRoot-Is-Purelib: true\nTag: " + tag + "\n"},
		{"RECORD", info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	} {
		w, createErr := z.Create(info + file[0])
		if createErr == nil {
			_, createErr = io.WriteString(w, file[1])
		}
		err = errors.Join(err, createErr)
	}
	return errors.Join(err, z.Close(), f.Close())
}

// withLinks adds a directory of wheels to an environment. As an argument it would
// replace those that uv has there.
func (n *installation) withLinks(env []string, dir string) []string {
	dir = listedLink(dir)
	for _, v := range []struct{ name, separator string }{{"PIP_FIND_LINKS", " "}, {"UV_FIND_LINKS", ","}} {
		value := dir
		if before := lastVariable(env, v.name); before != "" {
			value = before + v.separator + dir
		}
		env = append(env, v.name+"="+value)
	}
	return env
}

// listedLink returns a directory of wheels, or a URL of links, so that it can
// stand in the lists of pip and uv, which spaces and commas separate.
func listedLink(link string) string {
	if !strings.ContainsAny(link, " ,\t") {
		return link
	}
	if !strings.Contains(link, "://") {
		link = (&url.URL{Scheme: "file", Path: filepath.ToSlash(link)}).String()
	}
	return strings.ReplaceAll(link, ",", "%2C")
}
