module github.com/crossfade-go/crossfade

go 1.25.0

require (
	golang.org/x/sys v0.47.0
	google.golang.org/protobuf v1.36.12
)

tool google.golang.org/protobuf/cmd/protoc-gen-go
