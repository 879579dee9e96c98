// Package envdpb holds the messages of E2B's sandbox daemon, generated from
// the .proto files beside it, and the paths of its procedures. The client in
// package e2b and the fake daemon in package mock share it.
package envdpb

//go:generate ../../scripts/proto

// The procedures, as the daemon names them in URLs. They are not what the
// .proto files would give, because the package names there are ours.
const (
	ProcessList        = "/process.Process/List"
	ProcessConnect     = "/process.Process/Connect"
	ProcessStart       = "/process.Process/Start"
	ProcessUpdate      = "/process.Process/Update"
	ProcessStreamInput = "/process.Process/StreamInput"
	ProcessSendInput   = "/process.Process/SendInput"
	ProcessSendSignal  = "/process.Process/SendSignal"
	ProcessCloseStdin  = "/process.Process/CloseStdin"

	FilesystemStat             = "/filesystem.Filesystem/Stat"
	FilesystemMakeDir          = "/filesystem.Filesystem/MakeDir"
	FilesystemMove             = "/filesystem.Filesystem/Move"
	FilesystemListDir          = "/filesystem.Filesystem/ListDir"
	FilesystemRemove           = "/filesystem.Filesystem/Remove"
	FilesystemWatchDir         = "/filesystem.Filesystem/WatchDir"
	FilesystemCreateWatcher    = "/filesystem.Filesystem/CreateWatcher"
	FilesystemGetWatcherEvents = "/filesystem.Filesystem/GetWatcherEvents"
	FilesystemRemoveWatcher    = "/filesystem.Filesystem/RemoveWatcher"
)
