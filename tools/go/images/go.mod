module hk-dr/tools/go/images

go 1.26.0
