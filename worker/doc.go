// Package worker is the far end of a run: a program that runs steps at a host's
// request and reports through its journal.
//
// Who writes a driver implements [Driver], adds it to a [Registry] with a
// [Mode], and reads a [Step]: config, inputs, files, logger, events, metrics.
// Tables are Arrow record streams.
//
// Who writes a host calls [Main] first in main, so that the program can be
// started again as its own worker; or builds worker/cmd/osiris-worker, which
// has the drivers of this module.
//
// [ProxyWorker] is the worker itself, [Program] its command line. One worker
// serves one run: it takes a handshake, then executes steps, as many at once
// as it is asked to, and keeps their outputs for the steps that need them.
//
// A driver's error, panic or print never reaches the protocol: they become a
// failed step, and log messages.
package worker
