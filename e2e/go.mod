module github.com/crossfade-go/crossfade/e2e

go 1.25.0

require (
	github.com/crossfade-go/crossfade v0.0.0
	github.com/rogpeppe/go-internal v1.16.0
	golang.org/x/sys v0.47.0
)

require (
	golang.org/x/tools v0.26.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/crossfade-go/crossfade => ../
