package remote

import (
	_ "github.com/apache/arrow/go/v17/arrow/ipc"
	_ "github.com/apache/arrow/go/v17/arrow/memory"
	_ "github.com/fsnotify/fsnotify"
	_ "github.com/google/flatbuffers/go"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/ulikunitz/xz"
	_ "go.uber.org/goleak"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/text/encoding"
)
