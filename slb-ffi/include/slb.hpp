// slb for C++17: handles that end by themselves, and errors that are thrown. All else is slb.h's.
#ifndef SLB_HPP
#define SLB_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "slb.h"

namespace slb {

// What slb.h gives as a negative number.
class error : public std::runtime_error {
 public:
    explicit error(int code, const std::string& more = {})
        : std::runtime_error(more.empty() ? slb_strerror(code) : more), code_(code) {}
    int code() const noexcept { return code_; }

 private:
    int code_;
};

// Throws where `result` is an error; else gives it.
inline int check(int result) {
    if (result < 0) throw error(result);
    return result;
}

namespace detail {
template <typename T, int (*Free)(T*)>
struct deleter {
    void operator()(T* handle) const noexcept { Free(handle); }
};
template <typename T, int (*Free)(T*)>
using handle = std::unique_ptr<T, deleter<T, Free>>;
}  // namespace detail

// A compiled configuration. It has to stay while a mux, host or proxy uses it.
using snapshot = detail::handle<slb_snapshot, slb_snapshot_free>;

// A configuration in TOML.
class config {
 public:
    explicit config(std::string_view toml) {
        std::string faults(4096, '\0');
        slb_config* made = nullptr;
        int result = slb_config_parse(toml.data(), toml.size(), faults.data(), faults.size(), &made);
        if (result < 0) {
            faults.resize(faults.find('\0'));
            throw error(result, faults);
        }
        handle_.reset(made);
    }

    slb_role role() const { return static_cast<slb_role>(check(slb_config_role(handle_.get()))); }

    void set_backend(const char* name, uint32_t weight, slb_state state) {
        check(slb_config_set_backend(handle_.get(), name, weight, static_cast<uint8_t>(state)));
    }

    slb::snapshot compile(const slb_snapshot* previous = nullptr) const {
        slb_snapshot* made = nullptr;
        check(slb_config_snapshot(handle_.get(), previous, &made));
        return slb::snapshot(made);
    }

    slb_config* get() const noexcept { return handle_.get(); }

 private:
    detail::handle<slb_config, slb_config_free> handle_;
};

// A mux, and the snapshot that it uses.
class mux {
 public:
    mux(const config& config, uint64_t key_low, uint64_t key_high) : snapshot_(config.compile()) {
        slb_mux_options options;
        slb_mux_options_init(&options);
        check(slb_config_mux_options(config.get(), &options));
        options.key[0] = key_low;
        options.key[1] = key_high;
        slb_mux* made = nullptr;
        check(slb_mux_new(snapshot_.get(), &options, &made));
        handle_.reset(made);
    }

    // Gives each frame its verdict, rewritten in place where it is to be sent.
    void process(uint64_t now, slb_frame* frames, size_t count) {
        check(slb_mux_process(handle_.get(), now, frames, count, nullptr));
    }

    // Puts a changed configuration in place; no flow moves.
    void install(const config& config) {
        slb::snapshot next = config.compile(snapshot_.get());
        check(slb_mux_install(handle_.get(), next.get(), nullptr));
        snapshot_ = std::move(next);
    }

    slb_stats stats() const {
        slb_stats stats;
        check(slb_mux_stats(handle_.get(), &stats));
        return stats;
    }

    std::vector<slb_flow> flows() const {
        std::vector<slb_flow> all;
        slb_flow some[64];
        uint64_t cursor = 0;
        while (int count = check(slb_mux_flows(handle_.get(), &cursor, some, 64)))
            all.insert(all.end(), some, some + count);
        return all;
    }

    slb_mux* get() const noexcept { return handle_.get(); }

 private:
    slb::snapshot snapshot_;  // before the mux, so that it goes after it
    detail::handle<slb_mux, slb_mux_free> handle_;
};

}  // namespace slb

#endif
