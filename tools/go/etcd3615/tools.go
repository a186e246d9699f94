//go:build tools

// Package tools names the commands that hk-dr builds from this module, so that go.mod and go.sum pin everything they
// are made of. Nothing here is ever compiled itself.
package tools

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
